"""The person's browser of `burnish login`: ``BROWSER="python -m tests.support.browser SUBJECT %s"`` (`-`: refuses)."""

import sys

from tests.support.oidc import Browser


def main(subject: str, address: str) -> None:
    with Browser() as browser:
        back = browser.log_in(address, None if subject == "-" else subject)
        assert back.status_code == 302, back.text
        page = browser.http.get(back.headers["location"])
        print(page.status_code, page.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
