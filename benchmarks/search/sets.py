"""Sets of texts with questions and the texts that answer them.

The development set lies beside this (`development/`), made for this: conversations, whose
questions are answered by turns that often mean nothing without the one before; sections of files;
single facts (`questions.py`). Its tuning part chose the shares in a score, its held-out part did
not. LoCoMo is others' (Maharana et al. 2024, github.com/snap-research/locomo, CC BY-NC 4.0): very
long conversations. FriendsQA is others' too (Yang and Choi 2019, github.com/emorynlp/FriendsQA,
Apache 2.0): scenes of a play, with questions to their turns; nothing was chosen on it. Nor on QMSum
(Zhong et al. 2021, github.com/Yale-LILY/QMSum, MIT): meetings, with questions to spans of turns.
All three are read from clones of their repositories and never shipped.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.search.questions import REPEATED, REWORDED, others

DEVELOPMENT = Path(__file__).parent / "development"
OTHERS = 700
LOCOMO_FILE = "data/locomo10.json"
FRIENDS_FILE = "dat/friendsqa_tst.json"  # its test part
QMSUM_FILE = "data/ALL/jsonl/test.jsonl"  # its test part
QMSUM_NARROW = 5  # turns that answer a question, at most
FRIENDS_TURNS = "utterances:"  # so it stands there
FRIENDS_NOTE = "#NOTE#"  # who "says" what is seen
# Of LoCoMo's questions; the last kind has no answer in the conversation, but words that point to a
# turn.
LOCOMO_KINDS = {
    1: "several turns",
    2: "time",
    3: "inference",
    4: "one turn",
    5: "adversarial",
}


@dataclass(frozen=True)
class Text:
    """One note, or one section of a file."""

    name: str
    words: str
    conversation: str = ""  # which it is a turn of: turns follow one another


@dataclass(frozen=True)
class Question:
    """A question, and the names of the texts that answer it."""

    text: str
    answers: frozenset[str]
    kind: str


@dataclass(frozen=True)
class Memory:
    """What one agent has, and what it is asked."""

    texts: list[Text] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def development_notes() -> Memory:
    """Return the conversations and facts, all in one agent's memory."""
    memory = _parts("conversations.txt", "turns")
    for kind, pairs in (("facts, reworded", REWORDED), ("facts, a word repeated", REPEATED)):
        for number, (note, question) in enumerate(pairs):
            name = f"{kind} {number}"
            part = "tuning" if number % 2 else "held-out"
            memory.texts.append(Text(name, note))
            memory.questions.append(Question(question, frozenset([name]), f"{part}: {kind}"))
    memory.texts.extend(Text(text, text) for text in others(OTHERS))
    return memory


def development_files() -> Memory:
    """Return the sections of files."""
    return _parts("files.txt", "sections of files")


def _parts(file: str, kind: str) -> Memory:
    memory, part, title, place = Memory(), "", "", 0
    for line in (DEVELOPMENT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            part, title = line.removeprefix("# ").split(": ", 1)
            place = 0
        elif line.startswith("?"):
            text, numbers = line.removeprefix("? ").rsplit(" = ", 1)
            answers = frozenset(f"{title} {number}" for number in numbers.split())
            memory.questions.append(Question(text, answers, f"{part}: {kind}"))
        elif line:
            place += 1
            memory.texts.append(Text(f"{title} {place}", line, title))
    return memory


def locomo(path: Path) -> Iterator[Memory]:
    """Yield each of its conversations: one agent's memory, a program per session."""
    for talk in json.loads(_read(path, LOCOMO_FILE)):
        said = talk["conversation"]
        texts = [
            Text(turn["dia_id"], _turn(turn), key)
            for key, session in said.items()
            if key.startswith("session_") and isinstance(session, list)
            for turn in session
        ]
        names = frozenset(text.name for text in texts)
        questions = [
            Question(asked["question"], answers, LOCOMO_KINDS[asked["category"]])
            for asked in talk["qa"]
            if (answers := names & frozenset(asked["evidence"]))
        ]
        yield Memory(texts, questions)


def _turn(turn: dict[str, str]) -> str:
    shown = turn.get("blip_caption")
    return f"{turn['speaker']}: {turn['text']}" + (f" [shares {shown}]" if shown else "")


def friends(path: Path) -> Memory:
    """Return the scenes of its test part, all in one agent's memory, a program per scene."""
    memory = Memory()
    for scene in json.loads(_read(path, FRIENDS_FILE))["data"]:
        title = scene["title"]
        for part in scene["paragraphs"]:
            memory.texts.extend(
                Text(f"{title} {turn['uid']}", _line(turn), title) for turn in part[FRIENDS_TURNS]
            )
            memory.questions.extend(
                Question(asked["question"], answers, _asks(asked["id"]))
                for asked in part["qas"]
                if (answers := frozenset(f"{title} {a['utterance_id']}" for a in asked["answers"]))
            )
    return memory


def _line(turn: dict[str, Any]) -> str:
    said = str(turn["utterance"])
    speakers = ", ".join(name for name in turn["speakers"] if name != FRIENDS_NOTE)
    return f"{speakers}: {said}" if speakers else said


def _asks(name: str) -> str:
    """Return what a question asks for, which its id ends with: `s03_e21_c03_What`."""
    return name.rsplit("_", 1)[-1].lower()


def qmsum(path: Path) -> Iterator[Memory]:
    """Yield each meeting of its test part: one agent's memory, one program."""
    for line in _read(path, QMSUM_FILE).splitlines():
        meeting = json.loads(line)
        said = meeting["meeting_transcripts"]
        texts = [
            Text(str(place), f"{turn['speaker']}: {turn['content']}", "meeting")
            for place, turn in enumerate(said)
        ]
        questions = []
        for asked in meeting["specific_query_list"]:
            answers = frozenset(
                str(place)
                for first, last in asked["relevant_text_span"]
                for place in range(int(first), min(int(last) + 1, len(said)))
            )
            kind = "few turns" if len(answers) <= QMSUM_NARROW else "many turns"
            if answers:
                questions.append(Question(asked["query"], answers, kind))
        yield Memory(texts, questions)


def _read(path: Path, file: str) -> str:
    """Return the file: itself, of a work tree, or of a git directory without one."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if (path / file).is_file():
        return (path / file).read_text(encoding="utf-8")
    shown = ["git", f"--git-dir={path}", "show", f"HEAD:{file}"]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout
