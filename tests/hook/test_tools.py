"""TRL's tool loop under the hook: tool tokens count in no metric."""

import torch
from datasets import Dataset
from observe import keep_outputs, keep_rollouts
from tool_calls import add, call_the_tool, tool_model, tool_tokenizer
from toy import OPTIONS

from canon_trl import CANONConfig, CANONTrainer, requires_metrics
from canon_trl.advantages import dr_grpo_advantage


@requires_metrics("entropy", "length")
def reading_estimator(rollout):
    return dr_grpo_advantage(rollout.rewards)


def graded(completions, **kwargs):
    return [float(index % 4) for index in range(len(completions))]


def test_tool_loop(tmp_path):
    tokenizer = tool_tokenizer()
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+2?"}]] * 8})
    options = {"max_steps": 1, "max_completion_length": 160, "max_tool_calling_iterations": 1, "learning_rate": 0.0}
    trainer = CANONTrainer(
        tool_model(tokenizer),
        graded,
        CANONConfig(str(tmp_path), **(OPTIONS | options)),
        data,
        processing_class=tokenizer,
        tools=[add],
        rollout_func=call_the_tool,
        advantage_estimator=reading_estimator,
        policy_reward="rent",
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    output, rollout = outputs[0], rollouts[0]
    written = output["completion_mask"].sum(dim=1)
    by_model = (output["completion_mask"] * output["tool_mask"]).sum(dim=1)
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1.0
    assert (by_model < written).all(), "the tool must write tokens"
    assert torch.equal(rollout.lengths.flatten(), by_model)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    width = output["completion_ids"].shape[1]
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    token_entropy = torch.distributions.Categorical(logits=logits).entropy()
    want = (token_entropy * output["completion_mask"] * output["tool_mask"]).sum(dim=1) / by_model
    torch.testing.assert_close(rollout.metrics["entropy"].flatten(), want, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.rewards_per_func[..., 1].flatten(), -want, atol=2e-5, rtol=0)
