"""The eval commands as a whole, on a tiny model whose words make no sense."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operators.errors import ConfigError
from operators.events import Evidence, LedgerItem, TranslationEvent
from pipelines.cli.main import make_cli
from pipelines.lab.eval.backends import EngineBackend
from pipelines.lab.eval.command import DATA
from pipelines.lab.eval.engine import load_engine
from pipelines.lab.eval.facts import by_position
from pipelines.lab.eval.meetings import read_meetings
from pipelines.lab.eval.parallel import Sentence, find_corpora
from pipelines.lab.eval.summaries import headline
from pipelines.lab.eval.summary_meters import Summarised
from pipelines.lab.eval.summary_sides import Bounds, last_window, lead, note, refine, truncated
from pipelines.lab.eval.translation import headline as translation_headline
from pipelines.lab.eval.translation_sides import Shown, _note, heard, policy_settings
from tests.engine import toy_decoder
from tests.served import running, scripted

SMALL = ["--model", "toy", "--threads", "1", "--set", "branch_tokens=2048"]
BRIEF = [*SMALL, "--window", "256", "--answer", "12", "--checkpoints", "2"]
BRIEF += ["--set", "update_tokens=200", "--set", "summary_tokens=12"]


def _invoke(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(make_cli(), ["eval", *arguments])
    assert done.exit_code == 0, done.output
    last: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return last


def test_summaries_gives_a_table_a_json_line_and_a_plot(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    options = ["--meetings", "ES2006b", "--lines", "12", "--json", str(file)]
    found = _invoke("summaries", *BRIEF, *options, "--plots", str(tmp_path))
    assert found == json.loads(file.read_text("utf-8"))
    assert list(found["sides"]) == ["ours", "last_window", "refine", "truncated", "lead"]
    assert found["rouge1_best_baseline_side"] == "lead"
    assert found["sides"]["ours"]["prefilled"] > found["sides"]["last_window"]["prefilled"] > 0
    assert found["tokens_vs_refine"] > 0
    assert (tmp_path / "summaries.png").stat().st_size > 0


def test_facts_plants_and_asks_in_the_language_of_the_transcript(tmp_path: Path) -> None:
    options = ["--meetings", "acl_talks_de", "--lines", "12", "--plots", str(tmp_path)]
    found = _invoke("facts", *BRIEF, *options)
    wanted = {"retention", "retention_lastwindow", "supersession", "owner", "due", "precision"}
    wanted |= {"evidence_valid", "false_notes", "rouge1", "r1_auc", "repeated", "verbatim"}
    wanted |= {"erasure", "tokens_vs_refine", "refused", "answered", "rouge1_best_baseline"}
    assert wanted <= set(found)
    assert len(found["facts"]["ours"]) == 12
    asked = [reply["question"] for reply in found["replies"]["acl_talks_de"]]
    assert len(asked) == 18
    assert "An welchem Tag ist die Falcon-Prüfung?" in asked
    assert (tmp_path / "facts.png").stat().st_size > 0


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    options = ["--meetings", "ES2006b", "--segments", "6", "--resume", str(file)]
    _invoke("facts", *BRIEF, *options, "--sides", "last_window")
    (line,) = file.read_text("utf-8").splitlines()
    assert json.loads(line)["side"] == "last_window"
    both = _invoke("facts", *BRIEF, *options, "--sides", "ours,last_window")
    assert len(file.read_text("utf-8").splitlines()) == 2
    again = _invoke("facts", *BRIEF, *options, "--sides", "ours,last_window")
    assert len(file.read_text("utf-8").splitlines()) == 2, "nothing was run again"
    for name in ("sides", "facts", "replies", "answered", "refused", "texts"):
        assert again[name] == both[name]
    _invoke("facts", *BRIEF, *options, "--sides", "last_window", "--set", "update_tokens=100")
    assert len(file.read_text("utf-8").splitlines()) == 3, "other settings, another result"
    _invoke("facts", *BRIEF, *options, "--sides", "ours", "--answer", "9", "--checkpoints", "1")
    assert len(file.read_text("utf-8").splitlines()) == 3, "ours depends on neither"


@pytest.mark.parametrize("policy", ["finals", "local-agreement-2"])
def test_documents_beside_each_other_give_the_same_translations(
    tmp_path: Path, policy: str
) -> None:
    texts, figures = [], []
    for at_once in (1, 4):
        file = tmp_path / f"{at_once}.jsonl"
        options = ["--pairs", "en-de", "--sets", "acl_talks", "--sentences", "2", "--sides", "ours"]
        options += ["--policy", policy, "--every-ms", "4000", "--texts", str(file)]
        found = _invoke("translation", *SMALL, *options, "--at-once", str(at_once))
        texts.append([json.loads(line)["ours"] for line in file.read_text("utf-8").splitlines()])
        figures.append({n: found[n] for n in ("laal_s", "long_yaal_s", "erasure", "retractions")})
        assert (found["laal_aware_s"] is None) == (at_once > 1)
        assert found["laal_s"] is not None
    assert texts[0] == texts[1]
    assert figures[0] == figures[1]


def test_of_each_document_its_beginning_is_taken() -> None:
    (whole,) = find_corpora(DATA / "parallel", ["en-de"], ["acl_talks"])
    (some,) = find_corpora(DATA / "parallel", ["en-de"], ["acl_talks"], limit=5, each=3)
    assert [len(d) for d in some.documents()] == [3, 2]
    assert list(some.sentences) == [s for d in whole.documents()[:2] for s in d[:3]][:5]
    assert [p.sentences for p in some.parts(1)] == [some.sentences[:3], some.sentences[3:]]


def test_translation_compares_policies_and_sides(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    options = ["--pairs", "en-de", "--sentences", "2", "--policy", "retranslation"]
    options += ["--texts", str(texts)]
    options += ["--every-ms", "4000", "--sides", "ours,plain", "--plots", str(tmp_path)]
    found = _invoke("translation", *SMALL, *options)
    sides = found["pairs"]["acl_talks en-de"]["sides"]
    assert set(sides) == {"ours", "plain", "finals"}
    assert found["chrf_vs_plain"] == pytest.approx(sides["ours"]["chrf"] - sides["plain"]["chrf"])
    assert found["bleu_vs_finals"] == 0  # the last word on a sentence is the same translation
    assert found["retractions"] == 0
    against = found["pairs"]["acl_talks en-de"]["against"]
    assert against["finals"] == {"sentence_chrf": 0, "interval": [0, 0]}
    assert against["plain"]["interval"][0] <= against["plain"]["sentence_chrf"]
    rows = [json.loads(line) for line in texts.read_text("utf-8").splitlines()]
    assert [set(sides) <= set(row) for row in rows] == [True, True]
    assert (tmp_path / "translation.png").stat().st_size > 0


def test_a_translation_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    options = ["--pairs", "en-de", "--sets", "acl_talks", "--sides", "ours,plain"]
    options += ["--resume", str(file)]
    _invoke("translation", *SMALL, *options, "--sentences", "2")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["side"] for row in rows] == ["ours (finals)", "plain"]
    texts = tmp_path / "texts.jsonl"
    rows[1]["made"]["outputs"] = ["Kept one.", "Kept two."]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    _invoke("translation", *SMALL, *options, "--sentences", "2", "--texts", str(texts))
    assert len(file.read_text("utf-8").splitlines()) == 2, "nothing was run again"
    kept = [json.loads(line) for line in texts.read_text("utf-8").splitlines()]
    assert [row["plain"] for row in kept] == ["Kept one.", "Kept two."]
    _invoke("translation", *SMALL, *options, "--sentences", "2", "--set", "window=3000")
    assert len(file.read_text("utf-8").splitlines()) == 4, "other settings, another result"


def test_translation_takes_a_server_for_all_of_its_sides() -> None:
    with running(scripted(lambda body: 'Guten Morgen."')) as script:
        options = ["--pairs", "en-de", "--sentences", "2", "--sides", "ours,plain"]
        served = ["--backend", "openai", "--server-url", script.url]
        found = _invoke("translation", *options, *served, "--threads", "1")
    sides = found["pairs"]["acl_talks en-de"]["sides"]
    assert found["weights"] == f"{script.url}/v1 scripted"
    assert sides["plain"]["generated"] == 4
    assert sides["ours"]["generated"] >= 4
    asked = Counter(body["messages"][-1]["content"] for body in script.asked)
    sentences = [
        count for said, count in asked.items() if said.startswith("Translate into German:")
    ]
    assert len(sentences) == 2
    assert min(sentences) >= 2  # both sides ask for each


@pytest.mark.model
def test_translation_runs_on_transformers_with_an_assistant() -> None:
    """Not the same text as without: in bf16 a block of drafts may decide a near tie otherwise."""
    options = ["--pairs", "en-de", "--sets", "acl_talks", "--sentences", "1", "--threads", "1"]
    backend = ["--backend", "transformers", "--model", "smollm2-135m"]
    assistant = ["--set", "draft_model=smollm2-135m"]
    found = _invoke("translation", *options, *backend, *assistant, "--sides", "ours")
    assert found["weights"] == "transformers smollm2-135m"
    (ours,) = found["pairs"]["acl_talks en-de"]["sides"].values()
    assert ours["generated"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["translation", "--model", "toy", "--pairs", "en-xx"], "no sentences for en-xx"),
        (["translation", "--model", "toy", "--policy", "nonsense"], "local-agreement-N"),
        (["translation", "--model", "toy", "--sides", "plain"], "--sides: ours and any of"),
        (["summaries", "--model", "toy", "--meetings", "nobody"], "meeting 'nobody'"),
        (["summaries", "--model", "toy", "--sides", "theirs"], "--sides: any of"),
        (["summaries", "--model", "toy", "--set", "windows=3"], "NAME=VALUE"),
        (["summaries", "--backend", "openai"], "needs server_url"),
        (["summaries", "--backend", "vllm"], "one of local, openai, transformers"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(make_cli(), ["eval", *arguments])
    assert done.exit_code == 2
    assert complaint in done.stderr.replace("\n", " ")


# --- the plain sides -------------------------------------------------------------------------------


def test_a_backend_answers_as_if_it_had_no_memory() -> None:
    model = toy_decoder()
    encode = model.tokenizer.encode

    def fresh() -> EngineBackend:
        return EngineBackend(model, encode, context=600)

    used = fresh()
    prompts = ["the same beginning, one", "the same beginning, other" * 12, "the same", "new"]
    replies = [used.reply(p, 8) for p in prompts]
    assert [r.text for r in replies] == [fresh().reply(p, 8).text for p in prompts]
    assert replies[1].prefilled == len(encode(prompts[1])) - len("the same beginning, o")
    assert all(r.generated <= 8 for r in replies)


def test_answers_beside_each_other_are_those_one_after_the_other() -> None:
    model = toy_decoder()
    encode = model.tokenizer.encode
    asked = [(f"the same beginning, {end}" * n, 5 + n) for n, end in enumerate("abcdefg", start=1)]
    backend = EngineBackend(model, encode, context=600, at_once=3)
    alone = EngineBackend(model, encode, context=600)
    replies = backend.replies(asked)
    assert [r.text for r in replies] == [alone.reply(*one).text for one in asked]
    assert [r.text for r in backend.replies(asked[::-1])] == [r.text for r in replies[::-1]]
    beginning = len(encode("the same beginning, "))
    assert sum(r.prefilled for r in replies) == beginning + sum(
        len(encode(message)) - beginning for message, _ in asked
    )


def test_a_prompt_beyond_the_context_is_refused() -> None:
    backend = EngineBackend(toy_decoder(), lambda message: [1] * 30, context=32)
    with pytest.raises(ConfigError, match="raise --context"):
        backend.reply("x", 8)


class _Echo:
    """Answers with the number of its prompt; a token per character."""

    name = "echo"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def count(self, text: str) -> int:
        return len(text)

    def reply(self, message: str, max_tokens: int) -> Any:
        from pipelines.lab.eval.backends import Reply

        self.prompts.append(message)
        return Reply(f"answer {len(self.prompts)}", len(message), 2, 0.0)


def _meeting() -> Any:
    return read_meetings(DATA / "meetings", ["ES2006b"], limit=40)[0]


def test_last_window_sees_the_last_lines_only() -> None:
    backend, meeting = _Echo(), _meeting()
    side = last_window(backend, Bounds(window=400), lambda line: None)
    made = side(meeting, [20, 39])
    assert [r.seq for r in made.revisions] == [20, 39]
    assert meeting.lines[39].text in backend.prompts[1]
    assert meeting.lines[20].text not in backend.prompts[1]
    assert made.prefilled == sum(map(len, backend.prompts))


def test_refine_hands_its_summary_on_and_sees_every_line_once() -> None:
    backend, meeting = _Echo(), _meeting()
    made = refine(backend, Bounds(window=900), lambda line: None)(meeting, [39])
    assert made.last.seq == 39
    assert [f"answer {n}" in p for n, p in enumerate(backend.prompts)][1:] == [True] * (
        len(backend.prompts) - 1
    )
    for line in meeting.lines:
        assert sum(f"{line.speaker}: {line.text}\n" in p + "\n" for p in backend.prompts) >= 1


def test_truncated_stops_asking_when_its_context_is_full() -> None:
    backend, meeting = _Echo(), _meeting()
    made = truncated(backend, Bounds(context=1200, answer=100), lambda line: None)(
        meeting, [5, 20, 30, 39]
    )
    assert len(backend.prompts) < 4
    assert made.at(39).text == made.last.text
    assert meeting.lines[0].text in backend.prompts[-1]
    assert meeting.lines[39].text not in backend.prompts[-1]


def test_lead_is_the_first_sentences() -> None:
    made = lead(30)(_meeting(), [0, 39])
    assert made.last.text.startswith("All hooked up.")
    assert 30 <= len(made.last.text.split()) < 70


# --- reading and adding up -------------------------------------------------------------------------


def test_a_ledger_item_becomes_a_note_with_the_lines_it_rests_on() -> None:
    item = LedgerItem(
        id="a1",
        kind="action_item",
        text="call",
        owner="Ben",
        due="Friday",
        state="done",
        evidence=(Evidence("12"), Evidence("nowhere")),
    )
    made = note(item)
    assert (made.kind, made.owner, made.due, made.state) == ("action_item", "Ben", "Friday", "done")
    assert made.evidence == (12, -1)


def test_the_headline_names_the_best_baseline() -> None:
    over = {
        "ours": {"rouge1": 0.3, "r1_auc": 0.2, "generated": 50},
        "refine": {"rouge1": 0.4, "r1_auc": 0.1, "generated": 200},
        "lead": {"rouge1": 0.1, "r1_auc": 0.15, "generated": 0},
    }
    found = headline(over)
    assert (found["rouge1"], found["rouge1_best_baseline"]) == (0.3, 0.4)
    assert (found["rouge1_best_baseline_side"], found["r1_auc_best_baseline_side"]) == (
        "refine",
        "lead",
    )
    assert found["tokens_vs_refine"] == 0.25


def test_the_translations_headline_prefers_llama_cpp_as_the_plain_side() -> None:
    def side(chrf: float) -> dict[str, Any]:
        return {"chrf": chrf, "bleu": chrf / 2, "retractions": 0}

    pairs = {"x": {"sides": {"ours": side(40), "plain": side(41), "plain llama.cpp": side(38)}}}
    found = translation_headline(pairs)
    assert (found["chrf_vs_plain"], found["plain_side"]) == (2, "plain llama.cpp")
    assert found["chrf_vs_offline"] is None


def test_retention_by_quarter_of_the_transcript() -> None:
    rows = [
        {"position": 0.1, "kept": True},
        {"position": 0.2, "kept": False},
        {"position": 0.99, "kept": True},
    ]
    assert by_position(rows) == [0.5, None, None, 1.0]


def test_what_was_there_at_a_checkpoint() -> None:
    assert Summarised().at(5).text == ""


# --- simulated speech ------------------------------------------------------------------------------

SENTENCE = Sentence("d", 0, "one two three four", "eins zwei drei vier", 1000, 5000)


def test_words_are_heard_evenly_over_the_sentence() -> None:
    assert heard(SENTENCE, 0) == [("one two three four", 5000.0, True)]
    assert heard(SENTENCE, 1000) == [
        ("one", 2000.0, False),
        ("one two", 3000.0, False),
        ("one two three", 4000.0, False),
        ("one two three four", 5000.0, True),
    ]


def test_committed_words_keep_the_time_at_which_they_were_first_there() -> None:
    def event(committed: str, tail: str = "", final: bool = False) -> TranslationEvent:
        return TranslationEvent(
            stream_id="s",
            epoch=0,
            revision=0,
            target_lang="de",
            unit_id="u",
            committed=committed,
            tail=tail,
            is_final=final,
        )

    shown = Shown()
    _note(shown, event("", "ein zwo"), 1000, 1500)
    _note(shown, event("eins", " zwo"), 2000, 2500)
    _note(shown, event("eins zwei", final=True), 3000, 3500)
    assert shown.versions == ["ein zwo", "eins zwo", "eins zwei"]
    assert shown.committed == ["eins", "eins zwei"]
    assert [(w.text, w.unaware, w.aware) for w in shown.words] == [
        ("eins", 2000, 2500),
        ("zwei", 3000, 3500),
    ]


def test_policies_are_settings_of_the_operator() -> None:
    finals = {"translate_partials": False, "translation_policy": "finals"}
    assert policy_settings("finals") == finals
    assert policy_settings("wait-3") == {"translate_partials": True, "translation_policy": "wait-3"}
    assert policy_settings("retranslation") == {"translate_partials": True}


def test_text_without_times_is_spoken_at_a_steady_pace(tmp_path: Path) -> None:
    rows = [
        {"doc": "a", "seq": 0, "src": "one two three four five", "ref": "x"},
        {"doc": "a", "seq": 1, "src": "one", "ref": "x"},
        {"doc": "b", "seq": 0, "src": "one", "ref": "x"},
    ]
    file = tmp_path / "news.en-fr.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (corpus,) = find_corpora(tmp_path, ["en-fr"], [], 0)
    assert not corpus.timed
    times = [(s.start_ms, s.end_ms) for s in corpus.sentences]
    assert times == [(0, 2000), (2000, 2400), (0, 400)]
    assert [len(d) for d in corpus.documents()] == [2, 1]


def test_points_without_lines_are_placed_by_their_time(tmp_path: Path) -> None:
    lines = [{"seq": s, "text": "x", "start_ms": s * 100_000} for s in range(10)]
    (tmp_path / "call.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    points = [{"stream_id": "call", "text": "p", "relevant_seq": None, "t_ms": 500_000}]
    (tmp_path / "timed_points.jsonl").write_text(json.dumps(points[0]) + "\n", "utf-8")
    (meeting,) = read_meetings(tmp_path, ["call"])
    assert meeting.points[0].lines == ((3, 7),)


def test_a_toy_is_an_engine_too() -> None:
    engine = load_engine("toy", {}, lambda line: None)
    assert engine.weights == "fp32+fp32"
