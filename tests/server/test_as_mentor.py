"""The server as the mentor of another run: by the package's own client, with nothing but its address."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")
pytest.importorskip("openai", reason="its client is tested with: pip install .[openai]")

from bundled import COMMON, instances
from lm_eval_tandem.harness.model import TandemLM
from server.serving import serving


@pytest.mark.parametrize("policy", ["mentor", "stage:2"])
def test_a_server_s_mentor_answers_and_guides_as_in_process(policy: str) -> None:
    def answered(**given: object) -> list[str]:
        lm = TandemLM(**{**COMMON, "intern": "pair", **given}, prompts="pair", efforts="18:24:40", policy=policy)
        answers = lm.generate_until(instances(6), disable_tqdm=True)
        lm.close()
        return answers

    with serving([]) as server:
        served = {"mentor": "tandem/mentor", "mentor_backend": "openai", "mentor_base_url": server.api}
        assert answered(**served, mentor_parameters=884480) == answered(mentor="pair")
