"""One process of the peer: transformers' own generation, plain or pipeline-parallel.

Rank 0 reads a JSON line {"prompts": [[id, ...], ...], "new_tokens": [n, ...]} from standard input
and answers with {"seconds": s, "tokens": n}, where only tokens that were asked for count. A batch
is padded on the left to its longest prompt and runs to its longest answer, as `generate` does it.
Mode `pipeline` is DistributedConfig(pp_size=WORLD_SIZE) over gloo, `generate` one process,
`continuous` its generate_batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.distributed import DistributedConfig


def load(folder: str, mode: str) -> Any:
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if mode == "pipeline":
        distributed.init_process_group("gloo", timeout=timedelta(hours=2))
        world_size = distributed.get_world_size()
        arguments["distributed_config"] = DistributedConfig(pp_size=world_size)
    return AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


def generate(model: Any, mode: str, prompts: list[list[int]], new_tokens: list[int]) -> int:
    """Returns how many tokens came of those that were asked for."""
    settings = GenerationConfig(
        max_new_tokens=max(new_tokens), do_sample=False, eos_token_id=None, pad_token_id=0
    )
    if mode == "continuous":
        outputs = model.generate_batch(inputs=prompts, generation_config=settings)
        counts = [len(output.generated_tokens) for output in outputs.values()]
    else:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask, generation_config=settings)
        counts = [output.shape[1] - longest] * len(prompts)
    return sum(min(count, wanted) for count, wanted in zip(counts, new_tokens, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--mode", choices=("generate", "pipeline", "continuous"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.folder, arguments.mode)
    rank = int(os.environ.get("RANK", "0"))
    print(json.dumps({"ready": rank}), flush=True)
    while True:
        line = [sys.stdin.readline()] if rank == 0 else [""]
        if arguments.mode == "pipeline":
            distributed.broadcast_object_list(line, src=0)
        if not line[0]:
            return
        start = time.perf_counter()
        work = json.loads(line[0])
        tokens = generate(model, arguments.mode, work["prompts"], work["new_tokens"])
        if rank == 0:
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
