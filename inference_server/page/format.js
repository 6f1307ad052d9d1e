// How numbers are written: one way for each kind.

export const whole = (count) => count.toLocaleString("en-US");

export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;

export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export const speed = (value) => (value < 10 ? value.toFixed(1) : String(Math.round(value)));

/** As the plan writes them: powers of ten. */
export function bytes(count) {
  const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([least]) => count >= least) ?? [1, "B"];
  return `${unit === 1 ? count : (count / unit).toFixed(1)} ${name}`;
}

/** The time of day of a moment in seconds since 1970. */
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
