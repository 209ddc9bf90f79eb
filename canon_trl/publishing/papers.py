"""The papers of the methods, and how they and this package are cited."""

from collections.abc import Mapping
from importlib.metadata import version

from canon_trl.paper import Paper

_NEGATIVE_REINFORCEMENT = Paper(
    key="zhu2025surprising",
    title="The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning",
    authors="Xinyu Zhu and Mengzhou Xia and Zhepei Wei and Wei-Lin Chen and Danqi Chen and Yu Meng",
    id="2506.01347",
)
_ENTROPY_MECHANISM = Paper(
    key="cui2025entropy",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    authors="Ganqu Cui and Yuchen Zhang and Jiacheng Chen and Lifan Yuan and Zhi Wang and Yuxin Zuo and Haozhan Li "
    "and Yuchen Fan and Huayu Chen and Weize Chen and Zhiyuan Liu and Hao Peng and Lei Bai and Wanli Ouyang and "
    "Yu Cheng and Bowen Zhou and Ning Ding",
    id="2505.22617",
)

# By the names that the configurations know the methods by.
PAPERS: Mapping[str, Paper] = {
    "canon": Paper(
        key="chen2025conditional",
        title="Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models",
        authors="Guanxu Chen and Yafu Li and Yuxian Jiang and Chen Qian and Qihan Ren and Jingyi Yang and Yu Cheng "
        "and Dongrui Liu and Jing Shao",
        id="2509.23962",
    ),
    "grpo": Paper(
        key="shao2024deepseekmath",
        title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        authors="Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and "
        "Haowei Zhang and Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo",
        id="2402.03300",
    ),
    "dr_grpo": Paper(
        key="liu2025understanding",
        title="Understanding R1-Zero-Like Training: A Critical Perspective",
        authors="Zichen Liu and Changyu Chen and Wenjun Li and Penghui Qi and Tianyu Pang and Chao Du and Wee Sun Lee "
        "and Min Lin",
        id="2503.20783",
    ),
    "rloo": Paper(
        key="ahmadian2024back",
        title="Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs",
        authors=r"Arash Ahmadian and Chris Cremer and Matthias Gall{\'{e}} and Marzieh Fadaee and Julia Kreutzer and "
        r"Olivier Pietquin and Ahmet {\"{U}}st{\"{u}}n and Sara Hooker",
        id="2402.14740",
    ),
    "reinforce_pp_baseline": Paper(
        key="hu2025reinforce",
        title="REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Normalization",
        authors="Jian Hu and Jason Klein Liu and Haotian Xu and Wei Shen",
        id="2501.03262",
    ),
    "opo": Paper(
        key="hao2025onpolicy",
        title="On-Policy RL with Optimal Reward Baseline",
        authors="Yaru Hao and Li Dong and Xun Wu and Shaohan Huang and Zewen Chi and Furu Wei",
        id="2505.23585",
    ),
    "a_grae": Paper(
        key="yu2026unveiling",
        title="Unveiling Implicit Advantage Symmetry: Why GRPO Struggles with Exploration and Difficulty Adaptation",
        authors="Zhiqi Yu and Zhangquan Chen and Mengting Liu and Heye Zhang and Liangqiong Qu",
        id="2602.05548",
    ),
    "psr": _NEGATIVE_REINFORCEMENT,
    "nsr": _NEGATIVE_REINFORCEMENT,
    "w_reinforce": _NEGATIVE_REINFORCEMENT,
    "clip_cov": _ENTROPY_MECHANISM,
    "kl_cov": _ENTROPY_MECHANISM,
    "dynamic_sampling": Paper(
        key="yu2025dapo",
        title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        authors="Qiying Yu and Zheng Zhang and Ruofei Zhu and Yufeng Yuan and Xiaochen Zuo and others",
        id="2503.14476",
    ),
    "astar_po": Paper(
        key="brantley2025accelerating",
        title="Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
        authors=r"Kiant\'e Brantley and Mingyu Chen and Zhaolin Gao and Jason D. Lee and Wen Sun and Wenhao Zhan and "
        "Xuezhou Zhang",
        id="2505.20686",
    ),
}


def package_citation() -> str:
    """The BibTeX entry of this package, with the facts of `CITATION.cff`."""
    return (
        "@software{canon_trl,\n"
        "    title   = {{canon_trl}},\n"
        "    author  = {{The canon_trl contributors}},\n"
        f"    version = {{{version('canon-trl')}}},\n"
        "    license = {Apache-2.0},\n"
        "}"
    )
