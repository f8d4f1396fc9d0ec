"""Talk to a deployment with the official `openai` package: python examples/openai_client.py production "Hello".

Needs `pip install openai` and a running server with a deployment.
"""

import sys

from openai import OpenAI

from burnish.client.address import find_url


def main(deployment: str, message: str) -> None:
    """Stream an answer."""
    client = OpenAI(base_url=f"{find_url()}/v1", api_key="unused")
    stream = client.chat.completions.create(
        model=deployment, messages=[{"role": "user", "content": message}], max_tokens=64, stream=True
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
