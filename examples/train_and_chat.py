"""Train a model on your rows and talk to it: python examples/train_and_chat.py reviews.jsonl ./model.gguf.

Needs a running server (`burnish serve`).
"""

import sys

from burnish import Client


def main(rows: str, model: str) -> None:
    """Add the rows, run the whole life of a model on them, ask it something."""
    with Client() as client:
        dataset = client.datasets.add(rows)
        run = client.workflows.submit(
            "train-optimize-deploy",
            {"model": model, "dataset": f"{dataset.name}@{dataset.version}", "name": "demo-model", "epochs": 1},
        )
        for event in client.workflows.follow(run.workflow_id):
            if event is not None and event.type == "state":
                print(event.data)
        ended = client.workflows.get(run.workflow_id)
        if ended.status != "succeeded":
            sys.exit(f"it {ended.status}: {ended.error.message if ended.error else ''}")
        print(client.chat("demo-model", "Was this a good film? It was warm and funny.", max_tokens=8))


if __name__ == "__main__":
    main(*sys.argv[1:])
