"""Which label does the served model answer?

**accuracy** (headline): the share of rows whose label is answered when the answer is restricted to the labels by what an
`openai` client can send: `logit_bias` of +100 on the labels' first tokens with `max_tokens` 1, or, where two labels
begin with the same token or with a part of a character, `response_format` with a JSON schema. The result's `request` says exactly what was sent
besides the messages, so that a client's own loop over the rows gives the same answers.

**label_likelihood**: the share of rows whose label has the highest log-probability, summed over the label's tokens. For
labels of one token this is the same choice, made from the log-probabilities in place of the answer. Left out where llama.cpp
cannot tell it, as for labels whose tokens are parts of characters (Chinese and Korean, with many tokenizers).

**free_exact_match**: the share of the first 100 rows whose unrestricted greedy answer is the label, apart from case,
surrounding space and punctuation. It flatters fine-tuning, which teaches the form of the answer.

Intervals are Wilson's, at 95 %.
"""

from burnish.components.evaluation.tasks.base import Task

TASK = Task(
    name="classification",
    summary="Accuracy on labelled texts, restricted to the labels, as served",
    manual=__doc__,
    run="burnish.ml.score_classification:evaluate",
    headline="accuracy",
    formats=("classification",),
    engines=("llama_cpp", "transformers"),
)
