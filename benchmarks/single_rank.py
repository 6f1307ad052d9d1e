"""Our engine's loop in one process against transformers' generate and generate_batch.

    python -m benchmarks.single_rank            # minutes
    python -m benchmarks.single_rank --loads 1 --rounds 2 --threads 1

StageModel and Sampler without sockets or scheduler: what the stage's own code costs and gains.
Everything is resident in this process and takes turns within each round; figures are medians over
rounds, ratios medians of the ratios within a round. Greedy ids are compared with generate's: a
request whose ids differ is counted (float32 near-ties aside, there should be none). The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.hardware import describe_hardware
from benchmarks.random_model import make_random_model
from benchmarks.serving import NEW_TOKENS, PROMPT_TOKENS, make_work
from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.sampling.sampler import Sampler
from runner.steps import Admission, Segment, Step

Prompts = list[list[int]]
Contender = Callable[[Prompts, int], list[list[int]]]
GREEDY = SamplingParameters(temperature=0.0)


class SingleRank:
    """All requests in one micro-batch: one packed prefill, then one packed decode per token."""

    def __init__(self, folder: Path, layers: int) -> None:
        self._model = StageModel.load(Checkpoint(folder), (0, layers), dtype="float32")
        self._sampler = Sampler(self._model.vocab_size, "cpu")

    @torch.inference_mode()
    def __call__(self, prompts: Prompts, new_tokens: int) -> list[list[int]]:
        for request, prompt in enumerate(prompts):
            capacity = len(prompt) + new_tokens
            admission = Admission(request, capacity, len(prompt), 0, 0, GREEDY)
            self._model.admit(admission)
            self._sampler.admit(admission)
        answers: list[list[int]] = [[] for _ in prompts]
        fresh = prompts
        for number in range(new_tokens):
            tokens = self._sampler_tokens(self._step(number, prompts, answers, fresh))
            for answer, token_id in zip(answers, tokens, strict=True):
                answer.append(token_id)
            fresh = [[token_id] for token_id in tokens]
        for request in range(len(prompts)):
            self._model.release(request)
            self._sampler.release(request)
        return answers

    def _step(self, number: int, prompts: Prompts, answers: Prompts, fresh: Prompts) -> Step:
        segments = []
        for request, ids in enumerate(fresh):
            total = len(prompts[request]) + len(answers[request])
            segments.append(Segment(request, total - len(ids), len(ids), total, True))
        return Step(number, tuple(segments), [token_id for ids in fresh for token_id in ids])

    def _sampler_tokens(self, step: Step) -> list[int]:
        logits = self._model.forward(step, None)
        self._sampler.extend(step)
        return [token.token_id for token in self._sampler.sample(step, logits)]


def settings(new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )


def make_generate(model: PreTrainedModel) -> Contender:
    @torch.inference_mode()
    def generate(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings(new_tokens)
        )
        answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return answers

    return generate


def make_generate_batch(model: PreTrainedModel) -> Contender:
    def generate_batch(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        outputs = model.generate_batch(inputs=prompts, generation_config=settings(new_tokens))
        return [list(output.generated_tokens) for output in outputs.values()]

    return generate_batch


def measure(
    contenders: dict[str, Contender], load: int, new_tokens: int, rounds: int
) -> dict[str, object]:
    """Medians of one load; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    failures = dict.fromkeys(contenders, 0)
    differing = 0
    for number in range(rounds + 1):
        prompts = make_work(load, PROMPT_TOKENS, NEW_TOKENS, seed=number).prompts
        answers: dict[str, list[list[int]]] = {}
        for name, contender in contenders.items():
            start = time.perf_counter()
            answers[name] = contender(prompts, new_tokens)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
            failures[name] += load - sum(len(answer) == new_tokens for answer in answers[name])
        ours, generate = answers["splitstack"], answers["generate"]
        differing += sum(own != other for own, other in zip(ours, generate, strict=True))
    summary: dict[str, object] = {"requests_differing_from_generate": differing}
    for name, runs in seconds.items():
        pairs = zip(seconds["splitstack"], runs, strict=True)
        ratio = statistics.median(other / own for own, other in pairs)
        speed = load * new_tokens / statistics.median(runs)
        print(f"{load:4} requests  {name:16} {speed:8.1f} tokens/s  ours is {ratio:5.2f}x")
        summary[name] = {
            "tokens_per_s": round(speed, 2),
            "splitstack_speedup": round(ratio, 3),
            "failures": failures[name],
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path(".cache/random-llama-350m"))
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-batch", action="store_true", help="leave generate_batch out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.model.parent.mkdir(parents=True, exist_ok=True)
    folder = make_random_model(arguments.model).resolve()
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    contenders: dict[str, Contender] = {
        "splitstack": SingleRank(folder, peer.config.num_hidden_layers),
        "generate": make_generate(peer),
    }
    if not arguments.no_batch:
        continuous = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        contenders["generate_batch"] = make_generate_batch(continuous)
    results = {
        str(load): measure(contenders, load, arguments.new_tokens, arguments.rounds)
        for load in arguments.loads
    }
    hardware = {**describe_hardware(), "threads": arguments.threads}
    print(json.dumps({"results": results, "rounds": arguments.rounds, "hardware": hardware}))


if __name__ == "__main__":
    main()
