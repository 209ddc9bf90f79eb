"""Run `step_time.py` with the real vLLM engine on a CPU, set up as in the tests: `make benchmark-vllm`."""

from cpu_engine import vllm_on_cpu
from smollm2 import save_smollm2
from step_time import main

if __name__ == "__main__":
    shared = ["--vllm", "--cpu", "--pairs", "41", "--methods", "canon entropy"]
    with vllm_on_cpu():
        print("embedded model", flush=True)
        main([*shared, "--responses", "32", "--tokens", "32"])
        print("SmolLM2-135M", flush=True)
        model = str(save_smollm2("outputs/smollm2"))
        main([*shared, "--model", model, "--responses", "8", "--group", "4", "--tokens", "16"])
