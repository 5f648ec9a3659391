"""What the workers of a chaos run are set to run, by the name of the model."""

from __future__ import annotations

TOY = {
    "OPERATOR__SUMMARY_METHOD": "lines",
    "OPERATOR__WINDOW": "96",
    "OPERATOR__SLACK": "24",
    "OPERATOR__BRANCH_TOKENS": "220",
    "OPERATOR__SLOTS": "6",
    "OPERATOR__BRANCHES": "4",
    "OPERATOR__UPDATE_TOKENS": "60",
    "OPERATOR__SUMMARY_TOKENS": "16",
    "OPERATOR__LEDGER_TOKENS": "80",
    "OPERATOR__TRANSLATION_UNIT_TOKENS": "32",
    "OPERATOR__PROMPTS": '{"system": "S", "user": "U{window}", "summary": "{ledger} {limit}",'
    ' "compact": "{ledger} {limit}", "translate": "{language} {text}",'
    ' "answer": "{excerpts} {question}"}',
}
REAL = {
    "OPERATOR__WINDOW": "256",
    "OPERATOR__SLOTS": "8",
    "OPERATOR__UPDATE_TOKENS": "128",
    "OPERATOR__SUMMARY_TOKENS": "24",
}
MODELS = {"toy": "make_toy", "echo": "make_echo"}


def model_settings(model: str) -> dict[str, str]:
    """Settings by name (without LONGSTREAM_) for ``toy``, ``echo`` or a model as for a worker."""
    if model in MODELS:
        return {**TOY, "TEST_OPERATOR": f"pipelines.lab.chaos.operators:{MODELS[model]}"}
    return {**REAL, "MODEL": model}
