"""One process of the peer: transformers' own generation, plain or pipeline-parallel.

Rank 0 reads a JSON line {"prompts": [[id, ...], ...], "new_tokens": n} from standard input and
answers with {"seconds": s, "tokens": n}. All prompts of a line have the same length, so that the
peer pads nothing. Mode `pipeline` is DistributedConfig(pp_size=WORLD_SIZE) over gloo, `generate`
one process, `continuous` its generate_batch.
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


def generate(model: Any, mode: str, work: dict[str, Any]) -> int:
    prompts, new_tokens = work["prompts"], work["new_tokens"]
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    if mode == "continuous":
        outputs = model.generate_batch(inputs=prompts, generation_config=settings)
        return sum(len(output.generated_tokens) for output in outputs.values())
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    return (output.shape[1] - ids.shape[1]) * output.shape[0]


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
        tokens = generate(model, arguments.mode, json.loads(line[0]))
        if rank == 0:
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
