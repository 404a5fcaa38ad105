"""Masked-diffusion language models made of causal ones: LLaDA's objective, its reverse process, its likelihood bound.

`train` turns a causal model into a `Denoiser`, which sees a whole row at once and predicts the tokens that are masked in it;
`fill` writes an answer with one, `bound` measures its perplexity.

Papers: Large Language Diffusion Models (LLaDA, 2025); LongLLaDA: Unlocking Long Context Capabilities in Diffusion LLMs
(2025); Dream 7B: Diffusion Large Language Models (2025), for starting from a causal model's weights.
"""
