"""A chaos run from its beginning to its result."""

from __future__ import annotations

import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from operators.errors import ConfigError, LongstreamError
from pipelines.config.fields import Settings
from pipelines.dev import broker as brokers
from pipelines.dev.broker.jvm import FAST_RESTART
from pipelines.kafka.growth import grow
from pipelines.kafka.topics import TOPICS, create_topics
from pipelines.lab.chaos import watching
from pipelines.lab.chaos.check import Findings, Place, Record, Topics, check, differences
from pipelines.lab.chaos.models import model_settings
from pipelines.lab.chaos.plan import BROKER, KILLS, Action, make_plan, make_silences
from pipelines.lab.chaos.players import Fleet, Process, Speakers, break_broker
from pipelines.lab.chaos.reading import Progress, read_topics, write_records
from pipelines.worker import exit_codes

TARGET = "fr"
DRAIN_SECONDS = 600.0
START_SECONDS = 120.0
TICK_SECONDS = 0.1
HARM_SECONDS = 3.0
UPDATE_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""For an update by time of every silent stream: an interval, one more after a takeover, and its turn."""
GROWN_SECONDS = 12.0
"""How long everybody speaks on after the partitions have grown."""
FREEZE_SECONDS = 4.0
"""How much longer than its session a zombie sleeps."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    kills: int = 20
    seed: int = 1
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    workers: int = 2
    streams: int = 12
    partitions: int = 6
    rate: float = 4.0
    model: str = "toy"
    session_timeout_s: float = 10.0
    least_s: float = 5.0
    most_s: float = 15.0
    broker_restarts: int = 2
    silent: int = 3
    idle: int = 30
    idle_timeout_s: float = 45.0
    grow: int = 2
    max_stall_s: float = 20.0
    calm_s: float = 5.0
    keep: Path | None = None


@dataclass
class Outcome:
    """``summary`` is the JSON line. ``broken``: the promises that were not kept, in words."""

    summary: dict[str, Any]
    findings: Findings
    broken: list[str]
    report: list[str]


Say = Callable[[str], None]


def run(options: Options, say: Say) -> Outcome:
    """Start everything, let the plan happen while the speakers speak, then check.

    Raises LongstreamError when the run itself could not be carried out.
    """
    folder = options.keep or Path(tempfile.mkdtemp(prefix="longstream-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with brokers.start(properties=FAST_RESTART, log=say) as broker:
            return Chaos(options, broker, folder, say).run()
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


class Chaos:
    """One run on a broker of its own."""

    def __init__(self, options: Options, broker: brokers.Broker, folder: Path, say: Say) -> None:
        self._options, self._broker, self._folder = options, broker, folder
        self._began = time.monotonic()
        self._say = say
        self._settings = Settings.model_validate(
            {
                "bootstrap": broker.bootstrap,
                "app_id": "chaos",
                "delivery": options.delivery,
                "partitions": options.partitions,
                "session_timeout_s": options.session_timeout_s,
            }
        )
        self._fleet = Fleet(self._environment(), folder, options.seed)
        self._incidents = watching.Incidents()
        self._done = dict.fromkeys([*KILLS, *BROKER, "join", "leave"], 0)

    def run(self) -> Outcome:
        options, settings = self._options, self._settings
        create_topics(settings.bootstrap, TOPICS, options.partitions)
        plan = make_plan(
            options.seed, options.kills, options.broker_restarts, options.least_s, options.most_s
        )
        stopped = threading.Event()
        speakers = self._speakers(options.calm_s + sum(action.after for action in plan))
        watcher = watching.Watcher(settings)
        records: list[Record] = []
        reading = threading.Thread(
            target=self._fleet.watch_metrics, args=(stopped,), daemon=True, name="metrics"
        )
        try:
            self._fleet.wanted = options.workers
            self._wait_for_workers()
            for thread in (watcher, reading, speakers):
                thread.start()
            cpu = self._fleet.cpu_seconds()
            self._wait(lambda: False, options.calm_s)
            self._carry_out(plan)
            # Nobody sleeps when the speakers pause: their streams would count as abandoned.
            self._wait(lambda: not self._fleet.frozen, START_SECONDS)
            grown = self._try_to_grow()
            if options.grow:
                speakers.finish(ending=False)
                watcher, records = self._grow(watcher)
                speakers = self._speak_on(speakers)
            self._note("the speakers finish")
            speakers.finish()
            committed = self._drain()
            self._wait_for_silent(speakers, watcher)
            strange = self._meet_stranger()
            # A zombie has the chance to do harm before the topics are read.
            self._wait(lambda: not self._fleet.frozen, START_SECONDS)
            self._wait(lambda: False, HARM_SECONDS)
            self._cpu_s = self._fleet.cpu_seconds() - cpu
            stopped.set()
            reading.join(5)
            watcher.stop()
        finally:
            stopped.set()
            self._fleet.end()
        refusals = {
            "stranger_exit_code": strange,
            "growth_refused": grown,
            "partitions": [options.partitions, self._settings.partitions],
        }
        return self._judge(speakers, watcher, records, committed, refusals)

    # --- the plan ---------------------------------------------------------------------------

    def _wait_for_workers(self) -> None:
        def done() -> bool:
            ended = [process for process in self._fleet.all if process.exit_code is not None]
            return len(self._fleet.working) >= self._options.workers or bool(ended)

        self._wait(done, START_SECONDS)
        if len(self._fleet.working) < self._options.workers:
            last = self._fleet.all[0].log[-1500:]
            raise LongstreamError(f"the workers did not start; the end of one's log:\n{last}")

    def _carry_out(self, plan: list[Action]) -> None:
        for number, action in enumerate(plan, 1):
            self._wait(lambda: False, action.after)
            # Whoever is to suffer must be there: with nobody at work nothing would be proven.
            self._wait(lambda: bool(self._fleet.working), START_SECONDS)
            words = self._perform(action)
            self._done[action.kind] += 1
            self._note(f"[{number}/{len(plan)}] {words}")

    def _perform(self, action: Action) -> str:
        if action.kind == "join":
            self._fleet.wanted += 1
            return "one more worker is wanted"
        if action.kind in BROKER:
            return self._break_broker(gently=action.kind == "stop_broker")
        workers = self._fleet.working
        if not workers:
            raise LongstreamError("no worker came back; their logs are kept with --keep FOLDER")
        return self._hurt(action, workers[int(action.pick * len(workers))])

    def _hurt(self, action: Action, worker: Process) -> str:
        now, name = time.time(), worker.name
        if action.kind == "leave":
            self._fleet.wanted = max(self._options.workers, self._fleet.wanted - 1)
            worker.leaving = True
            worker.send(signal.SIGTERM)
            return f"{name} is asked to leave"
        if action.kind == "kill_worker":
            self._incidents.killed.append((now, name))
            if len(self._fleet.working) > 1:
                self._incidents.had_standby.add(name)
            worker.send(signal.SIGKILL)
            return f"{name} is killed"
        if action.kind == "kill_device":
            self._incidents.device_killed.append((now, name))
            if (device := worker.device()) is not None:
                device.kill()
            return f"the device of {name} is killed"
        seconds = self._options.session_timeout_s + FREEZE_SECONDS
        self._incidents.frozen.append((now, name))
        worker.freeze(time.monotonic() + seconds, device=action.kind == "freeze_all")
        what = f"{name} and its device" if action.kind == "freeze_all" else name
        return f"{what} freeze for {seconds:.0f} s"

    def _break_broker(self, *, gently: bool) -> str:
        self._note("the broker stops" if gently else "the broker is killed")
        start = time.time()
        break_broker(self._broker, gently=gently)
        self._incidents.broker_down.append((start, time.time()))
        return f"the broker is back after {time.time() - start:.1f} s"

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Look after the workers until the condition holds or the time is over."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self._fleet.look_after(self._note)
            time.sleep(TICK_SECONDS)

    def _grow(self, watcher: watching.Watcher) -> tuple[watching.Watcher, list[Record]]:
        """Stop the workers, add partitions, start workers again. Returns the watcher of all partitions,
        and the records of before: a moved stream's lie before those on its new partition."""
        self._drain()
        fleet = self._fleet
        fleet.wanted = 0
        for process in fleet.alive:
            process.leaving = True
            process.send(signal.SIGTERM)
        self._wait(lambda: not fleet.alive, START_SECONDS)
        watcher.stop()
        records = read_topics(self._settings, self._topics(), "read_committed")
        more = self._settings.partitions + self._options.grow
        before, moved = self._grow_topics(more)
        self._note(f"{before} partitions became {more}, and {moved} streams moved")
        self._settings = self._settings.model_copy(update={"partitions": more})
        following = watching.Watcher(self._settings, watcher)
        following.start()
        fleet.wanted = self._options.workers
        self._wait(lambda: len(fleet.working) >= fleet.wanted, START_SECONDS)
        return following, records

    def _speak_on(self, speakers: Speakers) -> Speakers:
        """The same streams go on after a pause."""
        following = speakers.resumed(self._settings)
        following.start()
        self._wait(lambda: False, GROWN_SECONDS)
        return following

    def _drain(self) -> dict[tuple[str, int], int]:
        """Wait until all input is committed; the group's offsets by topic and partition."""
        self._note("waiting until everything is committed")
        end = time.monotonic() + DRAIN_SECONDS
        with Progress(self._settings) as progress:
            ends = progress.ends()
            while True:
                committed = progress.committed()
                done = all(committed.get(place, 0) >= ends[place] for place in ends)
                if done or time.monotonic() > end:
                    return committed
                self._wait(lambda: False, 1.0)

    def _speakers(self, seconds: float) -> Speakers:
        options = self._options
        names = [f"stream-{number}" for number in range(options.streams)]
        expected = options.rate * seconds / options.streams
        silences = make_silences(options.seed, names, options.silent, expected)
        idle = [f"idle-{number}" for number in range(options.idle)]
        silences |= dict.fromkeys(idle, 1)
        return Speakers(self._settings, [*names, *idle], silences, options.rate, options.seed)

    def _wait_for_silent(self, speakers: Speakers, watcher: watching.Watcher) -> None:
        """What a silent stream is owed comes without a word of it, by time: give it that time, also to
        be ended by the workers, since nobody else does. Whether it came, the checker says."""
        owed = speakers.last_words()
        self._wait(
            lambda: all(
                watcher.covered.get(name) == last and name in watcher.ended
                for name, last in owed.items()
            ),
            SILENCE_SECONDS + self._options.idle_timeout_s,
        )

    def _meet_stranger(self) -> int | None:
        """A worker of another app_id comes to the same topics; its exit code, None if it stays."""
        self._note("a worker of another app_id starts on the same topics")
        stranger = self._fleet.stranger()
        self._wait(lambda: stranger.exit_code is not None, START_SECONDS)
        code = stranger.exit_code
        stranger.end()
        return code

    def _grow_topics(self, partitions: int) -> tuple[int, int]:
        """As :func:`grow`, once a worker that was killed is no member of the group any more."""
        deadline = time.monotonic() + 2 * self._options.session_timeout_s
        while True:
            try:
                return grow(self._settings, partitions)
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
            self._wait(lambda: False, 1.0)

    def _try_to_grow(self) -> bool:
        """Partitions are to grow under running workers; whether that is refused."""
        try:
            grow(self._settings, self._settings.partitions + 1)
        except ConfigError:
            return True
        return False

    # --- the verdict ------------------------------------------------------------------------

    def _judge(
        self,
        speakers: Speakers,
        watcher: watching.Watcher,
        before: list[Record],
        committed: dict[tuple[str, int], int],
        refusals: dict[str, Any],
    ) -> Outcome:
        settings, options, topics = self._settings, self._options, self._topics()
        self._note("reading all topics from their start")
        earlier = {record[:3] for record in before}
        records = before + [
            record
            for record in read_topics(settings, topics, "read_committed")
            if record[:3] not in earlier
        ]
        if options.keep is not None:
            write_records(records, options.keep / "records.jsonl")
        findings = check(
            records,
            topics,
            targets=[TARGET],
            committed=committed,
            acknowledged={(one.stream, one.segment_id) for one in speakers.stored},
            asked={one.question_id for one in speakers.asked},
            idle_s=options.idle_timeout_s,
        )
        dirty = len(read_topics(settings, topics, "read_uncommitted")) - len(records)
        assignments = self._fleet.assignments()
        stored = [(one.at, Place(one.partition, one.offset)) for one in speakers.stored]
        pauses = watching.pauses(watcher.results, stored)
        staying = [p for p in pauses if watching.stays(p, assignments, self._incidents)]
        worst = watching.longest(staying)
        done = self._done
        summary: dict[str, Any] = {
            "kills": sum(done[kind] for kind in KILLS),
            "rebalances": watching.rebalances(assignments),
            "broker_restarts": sum(done[kind] for kind in BROKER),
            "segments": findings.segments,
            "questions": findings.questions,
            "silent_streams": len(speakers.last_words()),
            "not_ended": len(speakers.last_words().keys() - watcher.ended),
            **refusals,
            "lost": findings.lost,
            "reordered": findings.reordered,
            "conflicting_revisions": findings.conflicting_revisions,
            "duplicates_after_dedupe": findings.duplicates_after_dedupe,
            "duplicates_read_committed": findings.duplicates_read_committed,
            "restored_snapshot": self._fleet.restores("snapshot"),
            "restored_replay": self._fleet.restores("replay"),
            "max_stall_seconds": round(worst.seconds, 1) if worst else 0.0,
            "delivery": options.delivery,
            "seed": options.seed,
        }
        taken = watching.takeovers(watcher.results, assignments, self._incidents)
        waits = watching.delays(watcher.results, stored)
        report = [*self._report(findings, pauses, taken, dirty), *self._costs(records, waits)]
        broken = [
            *differences(findings, options.delivery),
            *watching.too_long(worst, options.max_stall_s),
            *_broken(summary),
        ]
        return Outcome(summary, findings, broken, report)

    def _topics(self) -> Topics:
        settings = self._settings
        return Topics(
            segments=settings.topic_segments,
            summaries=settings.topic_summaries,
            latest=settings.topic_summaries_latest,
            translations=settings.topic_translations,
            dlq=settings.topic_dlq,
            questions=settings.topic_questions,
            answers=settings.topic_answers,
        )

    def _report(
        self,
        findings: Findings,
        pauses: list[watching.Pause],
        taken: list[float],
        dirty: int,
    ) -> list[str]:
        longest = watching.longest(pauses)
        lines = [
            ", ".join(f"{name} {count}" for name, count in self._done.items() if count),
            f"{dirty} records of transactions that never counted",
            f"{findings.dead_letters} dead letters, "
            f"{findings.summarised_again} segments summarised again after a restore",
        ]
        if taken:
            lines.append(
                "a killed worker's partitions had their next result after "
                f"{statistics.median(taken):.1f} s (median), at most {max(taken):.1f} s "
                f"({len(taken)} partitions, another worker standing by)"
            )
        if longest is not None:
            lines.append(
                f"longest pause of any partition, whatever happened to it: {longest.seconds:.1f} s"
            )
        for name, tail in self._ended_unasked():
            lines.append(f"{name} ended by itself: {tail}")
        return lines + findings.examples

    def _costs(self, records: list[Record], waits: list[float]) -> list[str]:
        """What the delivery mode costs, as far as it can be told from outside."""
        inputs = [r for r in records if r.topic == self._settings.topic_segments]
        size = sum(len(r.value or b"") for r in records) - sum(len(r.value or b"") for r in inputs)
        count = max(1, len(inputs))
        commits, seconds = self._fleet.commits()
        lines = [
            f"{commits} commits of {seconds * 1000:.1f} ms; per input record "
            f"{len(records) / count - 1:.2f} records and {size / count:.0f} bytes written",
        ]
        if waits:
            last = statistics.quantiles(waits, n=100)[98] if len(waits) > 1 else waits[0]
            lines.append(
                "a segment's first result is visible after "
                f"{statistics.median(waits):.2f} s (median), {last:.2f} s (99 %)"
            )
        if not self._options.kills:
            lines.append(f"worker's processor time {self._cpu_s * 1000 / count:.2f} ms per record")
        return lines

    def _ended_unasked(self) -> list[tuple[str, str]]:
        """Workers that nobody had touched and that ended on a fault, with the reason they gave."""
        hurt = {name for _, name in self._incidents.killed + self._incidents.device_killed}
        found = []
        for process in self._fleet.all:
            code = process.exit_code
            if process.name in hurt or code in (0, None, -signal.SIGKILL):
                continue
            lines = [line for line in process.log.splitlines() if "error" in line.lower()]
            found.append((process.name, (lines or process.log.splitlines() or [""])[-1][-300:]))
        return found

    def _environment(self) -> dict[str, str]:
        """The workers' environment: ours without settings, then this run's."""
        options = self._options
        values = {
            "BOOTSTRAP": self._broker.bootstrap,
            "APP_ID": self._settings.app_id,
            "DELIVERY": options.delivery,
            "SESSION_TIMEOUT_S": str(options.session_timeout_s),
            "COMMIT_INTERVAL_S": "0.2",
            "STOP_DEADLINE_S": "10",
            "HTTP_PORT": "0",
            "THREADS": "1",
            "SNAPSHOT_URL": str(self._folder / "snapshots"),
            "SNAPSHOT_INTERVAL_S": "2",
            "OPERATOR__TARGETS": TARGET,
            "OPERATOR__UPDATE_INTERVAL_S": str(UPDATE_SECONDS),
            "STREAM_IDLE_TIMEOUT_S": str(options.idle_timeout_s),
        }
        values |= model_settings(options.model)
        return {f"LONGSTREAM_{name}": value for name, value in values.items()}

    def _note(self, words: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.1f} s  {words}")


def _broken(summary: dict[str, Any]) -> list[str]:
    """Promises beside the checker's, in words."""
    found = []
    if summary["not_ended"]:
        found.append(f"{summary['not_ended']} abandoned streams were not ended")
    if summary["stranger_exit_code"] != exit_codes.CONFIG:
        found.append("a worker of another app_id was not refused on the same topics")
    if not summary["growth_refused"]:
        found.append("partitions grew under running workers")
    return found
