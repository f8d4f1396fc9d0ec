"""How close are generated answers to the reference answers?

Answers are generated greedily (temperature 0), at most `max_tokens`, through the serving engine.

**f1** (headline): mean over rows of the F1 of words (without case, punctuation and articles, as SQuAD counts).
**exact_match**: share of rows whose answer is the reference after the same normalisation, with Wilson's interval.
**rouge_l**: mean F of the longest common subsequence (package `rouge-score`, with stemming).
**bleu**: corpus BLEU, 0 to 100 (package `sacrebleu`); its interval is a bootstrap over rows.
"""

from burnish.components.evaluation.tasks.base import Task

TASK = Task(
    name="generation",
    summary="Exact match, F1, ROUGE and BLEU of generated answers, as served",
    manual=__doc__,
    run="burnish.ml.score_generation:evaluate",
    headline="f1",
    formats=("prompt_completion", "chat", "classification"),
    engines=("llama_cpp", "transformers"),
)
