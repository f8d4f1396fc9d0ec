"""How surprised is the model by the text?

**perplexity**: exp of the mean negative log-likelihood a token, over the supervised tokens: all tokens of `text` rows,
the completion of other rows, without the token that ends it. The interval comes from the spread between rows (delta method on the ratio of
sums), since tokens of a row are not independent.

**bits_per_token**: the same in bits. Lower is better for both. The example's `score` is minus its mean negative
log-likelihood, so that higher is better there, as everywhere.

Computed from the model's own logits, by the program that serves it: llama.cpp in process for GGUF, Transformers for
safetensors. Perplexities of models with different tokenizers cannot be compared.
"""

from burnish.components.evaluation.tasks.base import Task

TASK = Task(
    name="perplexity",
    summary="Perplexity of held-out text or completions",
    manual=__doc__,
    run="burnish.ml.score_perplexity:evaluate",
    headline="perplexity",
    formats=("text", "prompt_completion", "chat", "classification"),
    engines=("llama_cpp", "transformers"),
)
