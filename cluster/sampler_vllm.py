"""vLLM as a peer of the sampler's benchmark: the same shape, batch and draws, by its offline engine.

    PYTHON sampler_vllm.py SPEC      generates once for every line that it reads, answers with seconds

Run by the interpreter of an environment that has vLLM, whose torch is another than this project's:
nothing of the project is imported here. Random weights, all prompts admitted at once, compiled as
vLLM's defaults are, log-probabilities of what is drawn after temperature and top-k.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def make_engine(spec: dict[str, Any], folder: Path) -> Any:
    """An engine of random weights of the architecture `spec["config"]`, that of a Llama."""
    from vllm import LLM  # type: ignore[import-not-found]

    (folder / "config.json").write_text(json.dumps(spec["config"]))
    return LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=spec["dtype"],
        max_model_len=spec["config"]["max_position_embeddings"],
        max_num_seqs=spec["batch"],
        enable_prefix_caching=False,
        logprobs_mode="processed_logprobs",
    )


def main() -> None:
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's own words are not answers
    from vllm import SamplingParams

    draws = SamplingParams(
        temperature=1.0,
        top_k=spec["top_k"],
        max_tokens=spec["steps"],
        min_tokens=spec["steps"],
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
    )
    prompts = [{"prompt_token_ids": [spec["start"]]} for _ in range(spec["batch"])]
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(spec, Path(folder))
        for _ in sys.stdin:
            started = time.perf_counter()
            engine.generate(prompts, draws, use_tqdm=False)
            print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
