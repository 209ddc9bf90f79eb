"""Parse and run recipes inside the test process."""

from toy import TASK, base_model
from transformers import AutoModelForCausalLM

from canon_trl.cli.arguments import parse
from canon_trl.cli.train import TrainArguments
from canon_trl.config import CANONConfig

# Rows of a mathematics dataset.
MATHS = [
    {"question": "3 times the root of 13?", "target": r"3\sqrt{13}"},
    {"question": "p minus q?", "target": "p - q"},
    {"question": "a half?", "target": r"\frac{1}{2}"},
]

RUN = ["--task", "arithmetic", "--task_train_prompts", "16", "--task_eval_prompts", "8", "--max_steps", "2"]
RUN += ["--num_generations", "4", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8"]
RUN += ["--max_completion_length", "12", "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "true"]
RUN += ["--bf16", "false", "--save_strategy", "no", "--eval_strategy", "steps", "--disable_tqdm", "true"]


def parse_canon(*flags):
    # without use_cpu, a machine without bf16 rejects the config before any other check
    flags = [*flags, "--use_cpu", "true"]
    recipe, _, *parts = parse(flags, TrainArguments, CANONConfig, command="train", embedded="arithmetic")
    return recipe, *parts


def data_flags(path, *flags):
    """Return the flags that train or evaluate the embedded model on a data file."""
    return ["--dataset_name", str(path), "--model_name_or_path", str(TASK.model_path), *flags]


def moved_from_the_base_model(folder):
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return max((trained[name] - value).abs().max().item() for name, value in base_model().state_dict().items())
