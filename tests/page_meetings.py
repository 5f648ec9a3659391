"""Two meetings written by hand, as a worker would have put them on the topics: for the page's tests and
screenshots."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from operators.events import (
    Covers,
    Evidence,
    LedgerItem,
    ModelInfo,
    Segment,
    Speaker,
    StreamSettings,
    SummaryEvent,
    TranslationEvent,
    Usage,
    event_id,
)

RELEASE = [
    ("Ana Ruiz", "Good morning. Three things today: the release date, the billing bug and the visit from Lyon.", "Bonjour. Trois points aujourd'hui : la date de sortie, l'erreur de facturation et la visite de Lyon."),
    ("Tom Berg", "The release branch is green since last night, both clusters.", "La branche de sortie passe tous les tests depuis hier soir, sur les deux clusters."),
    ("Ana Ruiz", "Then we said Tuesday the twelfth, is that still right?", "Nous avions dit mardi douze, est-ce toujours bon ?"),
    ("Mei Lin", "The load test is not done. I would rather have two more days, so Thursday the fourteenth.", "Le test de charge n'est pas fait. Je préférerais deux jours de plus, donc jeudi quatorze."),
    ("Tom Berg", "Thursday works for me, support has people then.", "Jeudi me convient, le support aura du monde."),
    ("Ana Ruiz", "Good, we release on Thursday the fourteenth, not on Tuesday.", "Bien, nous sortons jeudi quatorze, et non mardi."),
    ("Mei Lin", "I will run the load test with two thousand streams by Wednesday noon.", "Je lancerai le test de charge avec deux mille flux d'ici mercredi midi."),
    ("Ana Ruiz", "Billing. Tom, what did you find?", "La facturation. Tom, qu'as-tu trouvé ?"),
    ("Tom Berg", "We charge a stream twice when it moves between regions within the same minute.", "Nous facturons un flux deux fois lorsqu'il change de région dans la même minute."),
    ("Tom Berg", "About forty customers, less than two hundred euros altogether.", "Une quarantaine de clients, moins de deux cents euros en tout."),
    ("Mei Lin", "Do we refund on our own account or wait until they ask?", "Remboursons-nous de nous-mêmes ou attendons-nous qu'ils le demandent ?"),
    ("Ana Ruiz", "We refund all of them without being asked, and we write to them.", "Nous les remboursons tous sans qu'ils le demandent, et nous leur écrivons."),
    ("Priya Shah", "I can write that letter, I need the list from Tom.", "Je peux écrire cette lettre, il me faut la liste de Tom."),
    ("Tom Berg", "You get the list today.", "Tu auras la liste aujourd'hui."),
    ("Priya Shah", "And who tells the accountants? They close the month on Friday.", "Et qui prévient la comptabilité ? Elle clôt le mois vendredi."),
    ("Ana Ruiz", "Let me think about that, I do not know who is there this week.", "Je dois y réfléchir, je ne sais pas qui est là cette semaine."),
    ("Mei Lin", "The fix itself is small, we key the charge by stream and minute.", "La correction est petite : la clé de facturation est le flux et la minute."),
    ("Ana Ruiz", "Lyon. Eleven people come on the twentieth, they want to see a live translation.", "Lyon. Onze personnes viennent le vingt, elles veulent voir une traduction en direct."),
    ("Priya Shah", "The large room is taken on the twentieth until three.", "La grande salle est prise le vingt jusqu'à quinze heures."),
    ("Tom Berg", "Then we start at half past three, and show the French minutes on the big screen.", "Alors nous commençons à quinze heures trente et montrons le compte rendu en français sur le grand écran."),
    ("Ana Ruiz", "Fine. Priya, please book it from three.", "Parfait. Priya, réserve-la à partir de quinze heures."),
    ("Mei Lin", "We should show what happens when a worker dies in the middle, they asked about that last time.", "Nous devrions montrer ce qui se passe quand un worker meurt en plein milieu, ils l'avaient demandé."),
    ("Tom Berg", "That takes nine seconds at the moment, I timed it twice.", "Cela prend neuf secondes en ce moment, je l'ai mesuré deux fois."),
    ("Ana Ruiz", "Nine seconds is a good story.", ""),
]  # fmt: skip
NOTES: list[dict[str, Any]] = [
    {"kind": "decision", "text": "The release is on Tuesday the 12th.", "state": "superseded", "at": [2], "rev": 1},
    {"kind": "decision", "text": "The release is on Thursday the 14th.", "at": [5, 3], "rev": 2, "supersedes": "n1"},
    {"kind": "action_item", "text": "Run the load test with 2,000 streams.", "owner": "Mei Lin", "due": "Wednesday noon", "at": [6], "rev": 2},
    {"kind": "topic", "text": "A stream that moves between regions within a minute is charged twice: about 40 customers, less than €200.", "at": [8, 9], "rev": 3},
    {"kind": "decision", "text": "All affected customers are refunded without being asked, with a letter.", "at": [11], "rev": 3},
    {"kind": "action_item", "text": "Write the letter to the customers.", "owner": "Priya Shah", "at": [12], "rev": 3, "by": "person"},
    {"kind": "action_item", "text": "Send Priya the list of affected customers.", "owner": "Tom Berg", "due": "today", "at": [13], "state": "done", "rev": 4},
    {"kind": "open_question", "text": "Who tells the accountants before they close the month on Friday?", "at": [14, 15], "rev": 4},
    {"kind": "decision", "text": "The visit from Lyon starts at 15:30 on the 20th; the French minutes are shown on the big screen.", "at": [19], "rev": 5},
    {"kind": "action_item", "text": "Book the large room on the 20th from 15:00.", "owner": "Priya Shah", "at": [20], "rev": 5},
]  # fmt: skip
ARABIC = [
    ("ليلى حداد", "صباح الخير جميعًا، لدينا اليوم موضوعان: موعد الافتتاح وميزانية الترجمة."),
    ("سامي نصر", "القاعة جاهزة، لكن أجهزة الصوت لن تصل قبل يوم الأحد."),
    ("ليلى حداد", "إذن لا يمكننا الافتتاح يوم السبت كما اتفقنا."),
    ("نور عطية", "أقترح يوم الثلاثاء، فالضيوف من Lyon يصلون مساء الاثنين."),
    ("سامي نصر", "الثلاثاء مناسب لي."),
    ("ليلى حداد", "حسنًا، الافتتاح يوم الثلاثاء الساعة العاشرة."),
    ("نور عطية", "سأكتب إلى الضيوف اليوم وأرسل لهم البرنامج الجديد."),
    ("سامي نصر", "وماذا عن الترجمة الفورية؟ العرض الأول بلغ 4,200 يورو."),
    ("ليلى حداد", "هذا أكثر مما خصصنا. هل نستطيع استخدام الترجمة الآلية للجلسات الصغيرة؟"),
    ("نور عطية", "جرّبناها الأسبوع الماضي وكانت جيدة للعربية والفرنسية."),
    ("سامي نصر", "سأطلب عرضًا ثانيًا قبل يوم الخميس لنقارن."),
]
ARABIC_NOTES: list[dict[str, Any]] = [
    {"kind": "decision", "text": "الافتتاح يوم السبت.", "state": "superseded", "at": [2], "rev": 1},
    {"kind": "decision", "text": "الافتتاح يوم الثلاثاء الساعة العاشرة.", "at": [5, 3], "rev": 2, "supersedes": "n1"},
    {"kind": "action_item", "text": "الكتابة إلى الضيوف وإرسال البرنامج الجديد.", "owner": "نور عطية", "due": "اليوم", "at": [6], "rev": 2},
    {"kind": "action_item", "text": "طلب عرض ثانٍ للترجمة الفورية.", "owner": "سامي نصر", "due": "الخميس", "at": [10], "rev": 3},
    {"kind": "open_question", "text": "هل تكفي الترجمة الآلية للجلسات الصغيرة؟", "at": [8, 9], "rev": 3},
    {"kind": "topic", "text": "العرض الأول للترجمة الفورية بلغ 4,200 يورو، وهو أكثر من المخصص.", "at": [7], "rev": 3},
]  # fmt: skip
MODEL = ModelInfo(name="qwen2.5-coder-1.5b", draft="combined")


def release(
    stream: str = "release-weekly", now: int | None = None, epoch: int = 0
) -> list[tuple[str, Any]]:
    """The English meeting with French: (source, event) in the order of the topics. ``epoch``: a late one
    is kept beside what a worker makes of the same segments."""
    said = [(name, text) for name, text, _ in RELEASE]
    french = [text for _, _, text in RELEASE]
    return meeting(stream, "Release meeting", said, NOTES, now, "en", {"fr": french}, epoch)


def opening(
    stream: str = "opening", now: int | None = None, epoch: int = 0
) -> list[tuple[str, Any]]:
    """The Arabic one."""
    return meeting(stream, "اجتماع التحضير للافتتاح", ARABIC, ARABIC_NOTES, now, "ar", {}, epoch)


def meeting(
    stream: str,
    title: str,
    said: list[tuple[str, str]],
    notes: list[dict[str, Any]],
    now: int | None,
    language: str,
    translations: dict[str, list[str]],
    epoch: int = 0,
) -> list[tuple[str, Any]]:
    now = now or time.time_ns() // 1_000_000
    starts, at = [], 4_000
    for _, text in said:
        starts.append(at)
        at += 900 + 62 * len(text)
    ends = [*starts[1:], at]
    settings = StreamSettings(title=title)
    start = Segment(stream_id=stream, type="session_start", settings=settings)
    events: list[tuple[str, Any]] = [("segments", start)]
    updates = max(note["rev"] for note in notes)
    for number, (name, text) in enumerate(said):
        spoken = now - (at - ends[number])
        segment = Segment(
            stream_id=stream,
            seq=number,
            segment_id=f"{stream}-{number}",
            text=text,
            speaker=Speaker(name=name),
            start_ms=starts[number],
            end_ms=ends[number] - 300,
            language=language,
            emitted_at_ms=spoken,
        )
        events.append(("segments", segment))
        for code, texts in translations.items():
            if texts[number]:
                unit = _translation(segment, code, texts[number], spoken)
                events.append(("translations", msgspec.structs.replace(unit, epoch=epoch)))
        due = (number + 1) * updates // len(said)
        if due > number * updates // len(said):
            notes_now = _summary(stream, due, notes, segment, starts, said)
            events.append(("summaries", msgspec.structs.replace(notes_now, epoch=epoch)))
    return events


def _translation(segment: Segment, code: str, text: str, at: int) -> TranslationEvent:
    number = segment.seq or 0
    return TranslationEvent(
        stream_id=segment.stream_id,
        epoch=0,
        revision=number + 1,
        event_id=event_id(segment.stream_id, f"translation:{code}", 0, number + 1),
        target_lang=code,
        source_lang=segment.language,
        unit_id=segment.segment_id,
        committed=text,
        source_segment_ids=(segment.segment_id,),
        model=MODEL,
        usage=Usage(output_tokens=len(text) // 4, drafted=len(text) // 5, accepted=len(text) // 9),
        emitted_at_ms=at + 1400,
    )


def _summary(
    stream: str,
    revision: int,
    notes: list[dict[str, Any]],
    last: Segment,
    starts: list[int],
    said: list[tuple[str, str]],
) -> SummaryEvent:
    items = []
    for number, note in enumerate(notes, 1):
        if note["rev"] > revision:
            continue
        fields = {k: v for k, v in note.items() if k not in ("at", "rev")}
        evidence = tuple(
            Evidence(f"{stream}-{at}", starts[at], None, said[at][0]) for at in note["at"]
        )
        replaced = any(n.get("supersedes") == f"n{number}" and n["rev"] <= revision for n in notes)
        if fields.get("state") == "superseded" and not replaced:
            fields["state"] = "open"
        changed = {"id": f"n{number}", "evidence": evidence, "last_changed_revision": note["rev"]}
        items.append(LedgerItem(**{**fields, **changed}))
    drafted = 34 + 3 * (revision % 4)
    return SummaryEvent(
        stream_id=stream,
        epoch=0,
        revision=revision,
        event_id=event_id(stream, "summary", 0, revision),
        text="\n".join(item.text for item in items),
        items=tuple(items),
        covers=Covers(last.seq or 0, last.segment_id, last.end_ms, 1800),
        model=MODEL,
        usage=Usage(
            output_tokens=58 + 9 * (revision % 3), drafted=drafted, accepted=drafted * 2 // 3
        ),
        emitted_at_ms=(last.emitted_at_ms or 0) + 2600,
    )


def draft(stream: str, number: int, name: str, text: str, start_ms: int) -> Segment:
    """A partial hypothesis that follows the meeting."""
    return Segment(
        stream_id=stream,
        segment_id=f"{stream}-{number}",
        text=text,
        is_final=False,
        speaker=Speaker(name=name),
        start_ms=start_ms,
    )


def encoded(event: Any) -> bytes:
    """The value of the record."""
    from pipelines.wire.codec import encode_event, encode_segment

    if isinstance(event, Segment):
        return encode_segment(event)
    return encode_event(msgspec.structs.replace(event))
