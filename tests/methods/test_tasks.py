"""The embedded tasks: problems, rewards, and the models shipped with them."""

import json
import random
import zlib
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from canon_trl.tasks import TASKS, arithmetic, chains, countdown, hint, pretrain, prompts, sums, verbosity

TASK = TASKS["arithmetic"]
SHIPPED = {name: task for name, task in TASKS.items() if task.pretrained is None}

# 7+8 = 15 -> 5;  5*3 = 15 -> 5;  5-9 = -4 -> 6;  6+4 = 10 -> 0;  0*6 = 0
PROMPT = "7+8*3-9+4*6="


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TASK.model_path)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TASK.model_path).eval()


@pytest.fixture(scope="module")
def evaluation(model, tokenizer):
    return pretrain.evaluate(TASK, model, tokenizer, size=256)


class TestProblems:
    @pytest.mark.parametrize(
        ("prompt", "values"),
        [
            (PROMPT, [5, 5, 6, 0, 0]),
            # 9-2 = 7;  7*4 = 28 -> 8;  8+7 = 15 -> 5;  5-8 = -3 -> 7;  7*3 = 21 -> 1
            ("9-2*4+7-8*3=", [7, 8, 5, 7, 1]),
            # 1-9 = -8 -> 2;  2-9 = -7 -> 3;  and so on, one up each time
            ("1-9-9-9-9-9=", [2, 3, 4, 5, 6]),
            # 2*3 = 6;  6*4 = 24 -> 4;  4*5 = 20 -> 0;  0 stays 0
            ("2*3*4*5*6*7=", [6, 4, 0, 0, 0]),
            # by precedence this would be 1+2*3+... = 7+...; from left to right 1+2 = 3;  3*3 = 9;  9+1 = 10 -> 0;
            # 0+1 = 1;  1+1 = 2
            ("1+2*3+1+1+1=", [3, 9, 0, 1, 2]),
        ],
    )
    def test_running_values_by_hand(self, prompt, values):
        assert arithmetic.running_values(prompt) == values

    def test_a_wrong_step_is_carried_forward(self):
        # each value one too high: 15 -> 5 -> 6;  6*3 = 18 -> 9;  9-9 = 0 -> 1;  1+4 = 5 -> 6;  6*6 = 36 -> 6 -> 7
        assert arithmetic.running_values(PROMPT, lambda value: (value + 1) % 10) == [6, 9, 1, 6, 7]


class TestStyles:
    @pytest.mark.parametrize(
        ("style", "text"),
        [("direct", "#0"), ("running", "55600#0"), ("verbose", "7+8=5;5*3=5;5-9=6;6+4=0;0*6=0#0")],
    )
    def test_text_without_noise(self, style, text):
        assert arithmetic.solution(PROMPT, style) == text
        assert arithmetic.style_of(text) == style

    @pytest.mark.parametrize(("style", "tokens"), [("direct", 3), ("running", 8), ("verbose", 32)])
    def test_length_with_eos(self, tokenizer, style, tokens):
        text = arithmetic.solution(PROMPT, style) + tokenizer.eos_token
        assert len(tokenizer(text).input_ids) == tokens

    @pytest.mark.parametrize("text", ["", "0", "#", "#10", "5560#0", "55600#", "7+8=5#5", "55600#0 "])
    def test_other_texts_have_no_style(self, text):
        assert arithmetic.style_of(text) is None

    # A redrawn step is right by chance one time in ten, so a noise of 0.10 leaves 0.09 of the first steps wrong.
    @pytest.mark.parametrize(("style", "wrong"), [("running", 0.09), ("verbose", 0.045)])
    def test_noise_rate(self, style, wrong):
        rng = random.Random(0)
        position = {"running": 0, "verbose": len("7+8=")}[style]
        texts = [arithmetic.solution(PROMPT, style, rng) for _ in range(10_000)]
        assert sum(text[position] != "5" for text in texts) / len(texts) == pytest.approx(wrong, abs=0.01)

    def test_a_noisy_verbose_solution_continues_from_its_own_values(self):
        rng = random.Random(0)
        for _ in range(200):
            steps, answer = arithmetic.solution(PROMPT, "verbose", rng).split("#")
            steps = steps.split(";")
            assert [step[0] for step in steps[1:]] + [answer] == [step[-1] for step in steps]

    def test_shares_sum_to_one(self):
        assert sum(style.share for style in arithmetic.STYLES.values()) == pytest.approx(1.0)


class TestDataset:
    def test_columns(self):
        data = TASK.dataset("train", 100, 0)
        assert data.column_names == ["prompt", "answer"]
        assert len(data) == len(set(data["prompt"])) == 100
        for row in data:
            assert row["answer"] == str(arithmetic.running_values(row["prompt"])[-1])

    def test_splits_are_disjoint_whatever_the_seed(self):
        for seed in range(3):
            assert {zlib.crc32(p.encode()) % 10 for p in TASK.dataset("test", 500, seed)["prompt"]} == {0}
            assert 0 not in {zlib.crc32(p.encode()) % 10 for p in TASK.dataset("train", 500, seed)["prompt"]}

    def test_same_seed_same_data(self):
        first = TASK.dataset("train", 50, 7)
        assert first.to_dict() == TASK.dataset("train", 50, 7).to_dict()
        assert first.to_dict() != TASK.dataset("train", 50, 8).to_dict()
        assert TASK.dataset("train", 20, 7)["prompt"][:] == first["prompt"][:20]

    def test_rows_do_not_change_between_releases(self):
        assert TASK.dataset("train", 3)["prompt"][:] == ["4*9-3*5*3*2=", "3*5+2-2-6-8=", "4+9*8+8+9*5="]
        assert TASK.dataset("test", 3).to_dict() == {
            # 7-7 = 0;  0-1 = 9;  9-5 = 4;  4-9 = 5;  5*8 = 0
            # 9*9 = 1;  1-1 = 0;  0+2 = 2;  2-9 = 3;  3*2 = 6
            # 7*8 = 6;  6+7 = 3;  3-4 = 9;  9*1 = 9;  9*1 = 9
            "prompt": ["7-7-1-5-9*8=", "9*9-1+2-9*2=", "7*8+7-4*1*1="],
            "answer": ["0", "6", "9"],
        }

    @pytest.mark.parametrize("size", [0, -1, 2.5, 1_000_001])
    def test_impossible_size(self, size):
        with pytest.raises(ValueError, match=f"size must be a whole number from 1 to 1000000, got {size}"):
            TASK.dataset("train", size)

    def test_unknown_split(self):
        with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\], got 'validation'"):
            TASK.dataset("validation", 1)


class TestReward:
    @pytest.mark.parametrize(
        ("completion", "reward"),
        [
            ("#5", 1.0),
            ("55600#5", 1.0),
            ("anything at all#5", 1.0),
            ("#4", 0.0),
            ("5", 0.0),
            ("", 0.0),
            ("#", 0.0),
            ("#5#5", 0.0),
            ("#4#5", 0.0),
            ("# 5", 0.0),
            ("#5 ", 0.0),
            (" #5", 1.0),
            ("#5;", 0.0),
            ("#55", 0.0),
            ("#05", 0.0),
        ],
    )
    def test_exact_match_after_the_first_mark(self, completion, reward):
        assert TASK.reward([completion], answer=["5"]) == [reward]
        conversation = [{"role": "assistant", "content": completion}]
        assert TASK.reward([conversation], answer=["5"]) == [reward]

    def test_a_prompt_without_an_answer_is_not_scored(self):
        assert TASK.reward(["#5", "5", "#None"], answer=["5", None, None]) == [1.0, None, None]

    def test_called_as_trl_does(self):
        rewards = TASK.reward(
            prompts=[PROMPT] * 3, completions=["#0", "#1", "0"], completion_ids=[[17], [17], [4]], answer=["0"] * 3
        )
        assert rewards == [1.0, 0.0, 0.0]
        assert TASK.reward.__name__ == "accuracy"


class TestTokenizer:
    def test_round_trip(self, tokenizer):
        for text in (PROMPT, "7+8=5;5*3=5;5-9=6;6+4=0;0*6=0#0", "5 5  #1"):
            assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert len(tokenizer) == 21

    def test_left_padding_for_generation(self, tokenizer):
        batch = tokenizer(["7+8=", "7="], padding=True)
        assert set(batch) == {"input_ids", "attention_mask"}
        assert batch["attention_mask"] == [[1, 1, 1, 1], [0, 0, 1, 1]]
        assert batch["input_ids"][1][:2] == [tokenizer.pad_token_id] * 2

    def test_special_tokens_agree(self, tokenizer, model):
        for owner in (tokenizer, model.config, model.generation_config):
            assert (owner.pad_token_id, owner.bos_token_id, owner.eos_token_id) == (0, 1, 2)


class TestShippedModel:
    def test_size(self, model):
        assert model.num_parameters() == 429_440
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert (TASK.model_path / "model.safetensors").stat().st_size < 3_000_000

    def test_samples_the_plain_distribution(self, model):
        config = model.generation_config
        assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)

    def test_accuracy_leaves_room_both_ways(self, evaluation):
        assert 0.35 <= evaluation.accuracy <= 0.6

    def test_every_style_is_sampled(self, evaluation):
        assert set(evaluation.style_shares) == {"direct", "running", "verbose"}
        assert min(evaluation.style_shares.values()) > 0.1
        assert sum(evaluation.style_shares.values()) > 0.97

    def test_longer_solutions_are_right_more_often(self, evaluation):
        right = evaluation.style_accuracies
        assert right["direct"] < right["running"] < right["verbose"]


class TestPretraining:
    def test_same_seed_same_weights(self):
        first, _ = pretrain.pretrain(TASK, seed=0, steps=2)
        second, _ = pretrain.pretrain(TASK, seed=0, steps=2)
        other, _ = pretrain.pretrain(TASK, seed=1, steps=1)
        weights = second.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in first.state_dict().items())
        assert not torch.equal(other.lm_head.weight, first.lm_head.weight)

    def test_pretraining_learns_only_solutions_to_training_prompts(self, tokenizer):
        input_ids, labels = pretrain.draw_batch(TASK, random.Random(0), tokenizer)
        drawn = list(islice(arithmetic.draw_prompts("train", random.Random(0)), 128))
        assert input_ids.shape == labels.shape == (128, 44)
        for prompt, ids, label in zip(drawn, input_ids, labels, strict=True):
            assert prompts.split_of(prompt) == "train"
            text = tokenizer.decode(ids, skip_special_tokens=True)
            learnt = tokenizer.decode(label[label != -100])
            assert text.startswith(prompt)
            assert learnt == text.removeprefix(prompt) + "<eos>"

    @pytest.mark.parametrize("task", SHIPPED.values(), ids=SHIPPED)
    def test_the_script_reproduces_the_shipped_files(self, task, tmp_path):
        # tokenizer and configuration only: the weights take minutes
        built = pretrain.build_tokenizer(task)
        built.save_pretrained(tmp_path)
        pretrain.build_model(built).save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in task.model_path.iterdir()}
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            saved, shipped = (json.loads((folder / name).read_text()) for folder in (tmp_path, task.model_path))
            # the transformers release that wrote a file does not matter
            assert saved | {"transformers_version": None} == shipped | {"transformers_version": None}


class TestVerbosity:
    TASK = TASKS["verbosity"]

    def test_rows_do_not_change_between_releases(self):
        assert self.TASK.dataset("train", 2).to_dict() == {
            "prompt": ["874254=", "734595="],
            "answer": ["452478", "595437"],
        }
        assert self.TASK.dataset("test", 1).to_dict() == {"prompt": ["298403="], "answer": ["304892"]}

    def test_impossible_size(self):
        with pytest.raises(ValueError, match="size must be a whole number from 1 to 50000, got 50001"):
            self.TASK.dataset("test", 50_001)

    def test_styles_have_the_same_lengths_with_and_without_care(self):
        rng = random.Random(0)
        for manner, mark in (("careful", "!"), ("careless", "?")):
            for padded, length in ((False, 8), (True, 24)):  # plus an end token
                text = verbosity.solution("402718=", manner, padded=padded, rng=rng)
                assert len(text) == length
                assert text[0] == mark
                assert verbosity.style_of(text) == f"{manner}, {'padded' if padded else 'short'}"

    @pytest.mark.parametrize("text", ["", "#817204", "!817204", "!#81720", "!.#817204", "!#817204 ", ".#817204"])
    def test_other_texts_have_no_style(self, text):
        assert verbosity.style_of(text) is None

    # Six digits, each redrawn at a rate of 0.03 or 0.35 and then right one time in ten.
    @pytest.mark.parametrize(("manner", "right"), [("careful", 0.973**6), ("careless", 0.685**6)])
    def test_careful_solutions_are_right(self, manner, right):
        rng = random.Random(0)
        texts = [verbosity.solution("402718=", manner, padded=True, rng=rng) for _ in range(4000)]
        rewards = self.TASK.reward(completions=texts, answer=["817204"] * 4000)
        assert sum(rewards) / 4000 == pytest.approx(right, abs=0.02)


class TestCountdown:
    TASK = TASKS["countdown"]

    def test_rows_do_not_change_between_releases(self):
        assert self.TASK.dataset("train", 1).to_dict() == {"prompt": ["5,8,7>16="], "answer": ["8*(7-5)"]}
        assert self.TASK.dataset("test", 1).to_dict() == {"prompt": ["1,7,3>10="], "answer": ["1*(3+7)"]}

    def test_every_answer_solves_its_prompt(self):
        data = self.TASK.dataset("test", 20)
        assert self.TASK.reward(completions=list(data["answer"]), prompts=list(data["prompt"])) == [1.0] * 20
        assert {prompts.split_of(prompt) for prompt in data["prompt"]} == {"test"}

    @pytest.mark.parametrize(
        ("completion", "reward"),
        [
            ("(9+5)*3", 1.0),
            ("3*(5+9)", 1.0),
            ("9+5*3", 0.0),  # 24
            ("9*5-3", 1.0),  # also 42
            ("42", 0.0),
            ("(9+5)*3-0", 0.0),  # one number too many
            ("(9+5)*3*1", 0.0),
            ("9*5", 0.0),
            ("(9+5*3", 0.0),
            ("9**5**3", 0.0),  # never evaluated
            ("", 0.0),
            ("(9+5)*3=", 0.0),
        ],
    )
    def test_reward_by_hand(self, completion, reward):
        assert self.TASK.reward(completions=[completion], prompts=["3,9,5>42="]) == [reward]
        conversation = {"completions": [[{"role": "assistant", "content": completion}]]}
        assert self.TASK.reward(**conversation, prompts=[[{"role": "user", "content": "3,9,5>42="}]]) == [reward]

    @pytest.mark.parametrize(("split", "most"), [("train", 2500), ("test", 320)])
    def test_too_many_prompts(self, split, most):
        with pytest.raises(ValueError, match=f"size must be a whole number from 1 to {most}, got {most + 1}"):
            self.TASK.dataset(split, most + 1)

    @pytest.mark.slow  # draws ten thousand problems
    def test_a_fifth_of_the_examples_is_right(self):
        examples = list(countdown.draw_examples(random.Random(0), 400))
        texts, given = [text for _, text in examples], [prompt for prompt, _ in examples]
        right = sum(self.TASK.reward(completions=texts, prompts=given)) / 400
        assert 0.15 < right < 0.25  # 0.15 by design, and some by chance
        assert {prompts.split_of(prompt) for prompt in given} == {"train"}


class TestHint:
    TASK = TASKS["hint"]

    def test_rows_do_not_change_between_releases(self):
        assert self.TASK.dataset("train", 2).to_dict() == {
            "prompt": ["4*9-3*5*3*2 5=", "2-2-6-8*9*2 9="],
            "answer": ["0", "8"],
        }
        assert self.TASK.dataset("test", 1).to_dict() == {"prompt": ["7-7-1-5-9*8 4="], "answer": ["0"]}

    def test_the_hint_is_right_for_two_prompts_in_five(self):
        data = self.TASK.dataset("train", 2000)
        rows = list(zip(data["prompt"], data["answer"], strict=True))
        assert sum(hint.hint_of(prompt) == answer for prompt, answer in rows) / 2000 == pytest.approx(0.4, abs=0.04)
        for prompt, answer in rows:
            problem = hint.problem_of(prompt)
            assert prompt == f"{problem[:-1]} {hint.hint_of(prompt)}="
            assert str(arithmetic.running_values(problem)[-1]) == answer
            assert prompts.split_of(problem) == "train"  # so no problem is in both splits with different hints

    def test_copying_is_right_as_often_as_the_hint_and_working_less_often(self):
        examples = hint.draw_examples(random.Random(0), 6000)
        right = {"copy": [], "work": []}
        for prompt, text in examples:
            assert prompts.split_of(hint.problem_of(prompt)) == "train"
            answer = str(arithmetic.running_values(hint.problem_of(prompt))[-1])
            right[hint.style_of(text)].append(arithmetic.answer_of(text) == answer)
        assert len(right["copy"]) / 6000 == pytest.approx(0.5, abs=0.03)
        assert np.mean(right["copy"]) == pytest.approx(0.4, abs=0.04)
        # the last value is right if no step before it was wrong, 0.64^5, or by chance, about one time in ten
        assert np.mean(right["work"]) == pytest.approx(0.64**5 + (1 - 0.64**5) / 10, abs=0.03)

    @pytest.mark.parametrize("text", ["", "5", "#55", "5560#0", "55600#", " #5", "55600 #5"])
    def test_other_texts_have_no_style(self, text):
        assert hint.style_of(text) is None


class TestChains:
    TASK = TASKS["chains"]

    def test_rows_do_not_change_between_releases(self):
        data = self.TASK.dataset("train", 2).to_dict()
        assert data == {"prompt": ["7-7*1+5*9+8-7+5+8=", "5+9-3-5-2*2*6+8*9="], "answer": ["1", "0"]}

    def test_half_of_the_answers_are_1(self):
        data = self.TASK.dataset("test", 2000)
        assert list(data["answer"]).count("1") / 2000 == pytest.approx(0.5, abs=0.05)
        for prompt, answer in zip(data["prompt"], data["answer"], strict=True):
            assert prompts.split_of(prompt) == "test"
            assert int(answer) == (arithmetic.running_values(prompt)[-1] >= 5)

    def test_the_long_style_is_rare_and_mostly_right(self):
        examples = chains.draw_examples(random.Random(0), 6000)
        right = {"guess": [], "steps": []}
        for prompt, text in examples:
            answer = chains.answer_to(arithmetic.running_values(prompt)[-1])
            right[chains.style_of(text)].append(arithmetic.answer_of(text) == answer)
        assert len(right["steps"]) / 6000 == pytest.approx(0.15, abs=0.02)
        # right if no step is wrong, 0.955^8, or by chance in about half of the other cases
        assert np.mean(right["steps"]) == pytest.approx((1 + 0.955**8) / 2, abs=0.05)
        assert all(right["guess"])  # the model can't tell, so it learns to guess

    @pytest.mark.parametrize("text", ["", "1", "#2", "#11", "5560083#1", "55600837#", "55600837#5"])
    def test_other_texts_have_no_style(self, text):
        assert chains.style_of(text) is None


class TestSampledStatistics:
    """The numbers in the tasks' descriptions, from a small sample."""

    @pytest.fixture(scope="class")
    def sampled(self):
        from canon_trl.sampling.samplers import TransformersSampler

        def sample(name):
            task = TASKS[name]
            tokenizer = AutoTokenizer.from_pretrained(task.model_path)
            model = AutoModelForCausalLM.from_pretrained(task.model_path)
            sampler = TransformersSampler(model, tokenizer, num_samples=64, max_new_tokens=30, entropies=True)
            data = task.dataset("test", 48)
            responses = sampler(list(data["prompt"]), 0)
            texts = [tokenizer.decode(one.ids, skip_special_tokens=True) for given in responses for one in given]
            columns = {name: [value for value in data[name] for _ in range(64)] for name in ("prompt", "answer")}
            rewards = task.reward(completions=texts, prompts=columns["prompt"], answer=columns["answer"])
            lengths = [len(one.ids) for given in responses for one in given]
            entropies = [one.entropy for given in responses for one in given]
            return np.array([rewards, lengths, entropies]).reshape(3, 48, 64)

        return sample

    def test_verbosity_separates_length_from_entropy(self, sampled):
        correlations = np.corrcoef(sampled("verbosity").reshape(3, -1))
        assert abs(correlations[0, 1]) < 0.1  # reward and length
        assert abs(correlations[1, 2]) < 0.2  # length and entropy
        assert correlations[0, 2] < -0.5  # reward and entropy

    def test_in_hint_the_short_half_is_right_more_often(self, sampled):
        rewards, lengths, _ = sampled("hint").reshape(3, -1)
        copies, works = lengths == 3, lengths == 8  # with an end token
        assert 0.4 < copies.mean() < 0.6 and (copies | works).mean() > 0.97
        assert 0.3 < rewards[copies].mean() < 0.5  # 48 hints: a standard error of 0.07
        assert 0.14 < rewards[works].mean() < 0.24

    def test_in_chains_guesses_are_right_half_of_the_time_and_steps_more_often(self, sampled):
        rewards, lengths, _ = sampled("chains").reshape(3, -1)
        guesses, steps = lengths == 3, lengths == 11  # with an end token
        assert 0.1 < steps.mean() < 0.2 and (guesses | steps).mean() > 0.97
        assert 0.45 < rewards[guesses].mean() < 0.56
        assert 0.7 < rewards[steps].mean() < 0.9

    def test_countdown_is_rarely_solved_once_and_mostly_in_many_samples(self, sampled):
        rewards, _, _ = sampled("countdown")
        assert 0.05 < rewards.mean() < 0.14
        assert 0.7 < rewards.max(axis=1).mean() < 0.95


class TestSums:
    TASK = TASKS["sums"]

    def test_the_splits_share_no_problem(self):
        train, test = (set(self.TASK.dataset(*split)["prompt"]) for split in (("train", 301), ("test", 99)))
        assert len(train) == 301 and len(test) == 99 and not train & test

    def test_prompts_by_hand(self):
        for row in self.TASK.dataset("test", 99, seed=1):
            *examples, question = row["prompt"].split("\n")
            assert examples == ["2+3=5", "7+4=11", "6+9=15"]
            left, right = question.removesuffix("=").split("+")
            assert row["answer"] == str(int(left) + int(right))

    @pytest.mark.parametrize(
        ("completion", "reward"),
        [("16", 1.0), (" 16\n1", 1.0), ("16 (", 1.0), ("160", 0.0), ("1", 0.0), ("-16", 0.0), ("", 0.0), ("x16", 0.0)],
    )
    def test_reward_by_hand(self, completion, reward):
        conversation = [{"role": "assistant", "content": completion}]
        assert sums.accuracy([completion, conversation], ["16", "16"]) == [reward, reward]

    def test_larger_numbers(self):
        rows = TASKS["large_sums"].dataset("train", 1024)
        questions = [prompt.split("\n")[-1].removesuffix("=") for prompt in rows["prompt"]]
        operands = [int(each) for question in questions for each in question.split("+")]
        assert min(operands) == 1 and max(operands) == 50

    def test_every_task_has_its_default_number_of_prompts(self):
        for task in TASKS.values():
            assert len(task.dataset("test", task.eval_prompts)) == task.eval_prompts
            assert len(task.dataset("train", task.train_prompts)) == task.train_prompts

    def test_the_base_model_is_named(self):
        assert self.TASK.model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert TASK.model == str(TASK.model_path)
