"""Claims about what the page does, without a page: limits, work, what is shown, results, and the guard."""

import asyncio
import json
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from twostage.app import views, work
from twostage.app.limits import Limits
from twostage.app.results import ResultFolders
from twostage.app.security import MOST, POLICY, SecurityMiddleware
from twostage.app.service import RestoreRequest, Service
from twostage.app.storage import Storage
from twostage.audio import sound_files
from twostage.audio.plots import spectrogram
from twostage.cli import main
from twostage.inference.restore_options import Options
from twostage.models import checkpoint
from twostage.utils.errors import AudioError, CheckpointError, ConfigError, DataError

RATE = 16000
LIMITS = Limits(seconds=10, files=3)


@pytest.fixture
def recordings(tmp_path, speech):
    """Uploads as they come: good ones, two of one name, and bad ones."""
    folder = tmp_path / "uploads"
    for name, seed in (("a/take.wav", 0), ("b/take.wav", 1)):
        sound_files.write(folder / name, speech(8000, seed=seed), RATE)
    sound_files.write(folder / "stereo.flac", np.stack([speech(9000), speech(9000, seed=2)]), 44100, subtype="PCM_24")
    sound_files.write(folder / "long.wav", np.zeros((2, 6 * RATE)), RATE)
    (folder / "text.wav").write_text("not a sound" * 30)
    return folder


@pytest.fixture
def desk(tmp_path, tiny_path):
    """A service whose published files stay where a test finds them."""
    home, shelf = tmp_path / "home", tmp_path / "shelf"
    home.mkdir()
    shelf.mkdir()

    def publish(value):
        if isinstance(value, Path):
            return Path(shutil.copy(value, shelf / f"{len(list(shelf.iterdir()))}-{value.name}"))
        if isinstance(value, dict):
            return {key: publish(item) for key, item in value.items()}
        return [publish(item) for item in value] if isinstance(value, list | tuple) else value

    return Service(Storage(home, 100), work.Models({"tiny": [str(tiny_path)]}), ["cpu"], LIMITS, publish)


def silent(part, *, desc):
    pass


def test_what_is_restored_is_what_the_command_writes(recordings, tiny, tiny_path, tmp_path):
    parts = []
    sources = [recordings / "a/take.wav", recordings / "stereo.flac"]
    outcome = work.restore_all(tiny, sources, tmp_path / "out", LIMITS, Options(), progress=parts.append)
    assert main(["restore", *map(str, sources), "-o", str(tmp_path / "cli"), "--model", str(tiny_path)]) == 0
    for seen, source in zip(outcome.views, sources, strict=True):
        assert seen["file"].read_bytes() == (tmp_path / "cli" / source.name).read_bytes()
    assert [seen["file"].name for seen in outcome.views] == ["take-restored.wav", "stereo-restored.flac"]
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1, abs=1e-3)


def test_one_bad_file_does_not_stop_the_rest_and_no_folder_is_told(recordings, desk):
    files = [recordings / name for name in ("a/take.wav", "text.wav", "long.wav")]
    said, shown = desk.restore([*map(str, files)], RestoreRequest("tiny", "cpu"), silent)
    assert [item["name"] for item in shown["items"]] == ["take.wav"]
    assert "1 restored, 2 failed" in said
    assert "text.wav: not a sound file" in said
    assert "long.wav: too long, the channels so far have 12 s of sound together; the limit is 10 s" in said
    assert str(recordings.parent) not in said
    assert list(desk.home.iterdir()) == []  # nothing but what was published outlasts a request


def test_files_of_one_name_are_both_in_the_archive(recordings, desk):
    files = [str(recordings / name) for name in ("a/take.wav", "b/take.wav")]
    _, shown = desk.restore(files, RestoreRequest("tiny", "cpu", suffix="flac"), silent)
    with ZipFile(shown["archive"]) as archive:
        assert archive.namelist() == ["take-restored.flac", "take-restored (2).flac"]
        assert [archive.read(name) for name in archive.namelist()] == [
            item["file"].read_bytes() for item in shown["items"]
        ]


@pytest.mark.parametrize(
    ("files", "wanted", "complaint"),
    [
        ([], RestoreRequest("tiny", "cpu"), "Nothing to restore"),
        (["a/take.wav"] * 4, RestoreRequest("tiny", "cpu"), "4 files at once are too many; the limit is 3"),
        (["a/take.wav"], RestoreRequest("other", "cpu"), "other: no such model; there are tiny"),
        (["a/take.wav"], RestoreRequest("tiny", "tpu"), "device tpu: none of cpu"),
        (["a/take.wav"], RestoreRequest("tiny", "cpu", level="x"), "level is &#x27;x&#x27;"),
        (["a/take.wav"], RestoreRequest("tiny", "cpu", keep_low_band=9000), "keep_low_band is 9000"),
        (["gone.wav"], RestoreRequest("tiny", "cpu"), "gone.wav: no such file"),
    ],
)
def test_every_mistake_is_a_sentence(recordings, desk, files, wanted, complaint):
    said, shown = desk.restore([str(recordings / name) for name in files], wanted, silent)
    assert complaint in said
    assert 'class="ts-bad"' in said
    assert shown is None


def test_a_header_that_hides_the_length_does_not_help(recordings):
    step = work.bounded(Path("a.wav"), LIMITS, lambda seconds: None)
    step(10.0)
    with pytest.raises(AudioError, match=r"a\.wav: too long"):
        step(0.1)


def test_a_sensor_is_simulated_as_the_command_does(tmp_path, speech, desk):
    sound_files.write(tmp_path / "clean" / "say.wav", speech(8000), RATE)
    clean = str(tmp_path / "clean" / "say.wav")
    assert main(["simulate", clean, str(tmp_path / "bone"), "--sensor", "in-ear", "--seed", "3"]) == 0
    output = work.simulate_one(Path(clean), tmp_path / "app", LIMITS, sensor="in-ear", seed=3)
    assert output.read_bytes() == (tmp_path / "bone" / "say.wav").read_bytes()
    said, shown = desk.simulate(clean, "in-ear", 3, RestoreRequest("tiny", "cpu"), silent)
    (item,) = shown["items"]
    assert "1 restored" in said
    assert [track["label"] for track in item["tracks"]] == ["clean", "in-ear", "restored"]
    assert item["file"].name.endswith("-say-in-ear-restored.wav")
    said, shown = desk.simulate(clean, "toe", 0, RestoreRequest("tiny", "cpu"), silent)
    assert "sensor toe: none of any, eben" in said
    said, shown = desk.simulate(None, "throat", 0, RestoreRequest("tiny", "cpu"), silent)
    assert "Nothing to restore" in said


def test_a_sample_is_handed_out_as_a_copy(desk):
    copy = Path(desk.sample("throat"))
    assert copy.parent.parent == desk.home
    assert copy.read_bytes() == work.sample("throat").read_bytes()
    assert desk.sample("nobody") is None


def test_levels_of_third_octaves():
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 20 * RATE)).astype(np.float32)
    levels = np.array(views.third_octaves(spectrogram([noise], RATE, noise.shape[1])))
    share = np.array(views.CENTERS) * (2 ** (1 / 6) - 2 ** (-1 / 6)) / (RATE / 2)  # of white noise at -20 dB
    np.testing.assert_allclose(levels, -20 + 10 * np.log10(share), atol=0.5)
    narrow = views.third_octaves(spectrogram([noise[:, : 2 * RATE]], 8000, 2 * RATE))
    assert [level is None for level in narrow] == [hertz * 2 ** (1 / 6) > 4000 for hertz in views.CENTERS]


def test_where_the_band_came_back():
    before = [-40.0] * 18 + [None] * 3
    after = [*[-40.0] * 5, -33.0, *[-40.0] * 9, *[-30.0] * 6]
    assert views.gained(before, after) == "Louder by 6 dB or more from 0.18 to 0.22 kHz, 1.8 to 7.1 kHz."
    assert views.gained(before, before) == "No third octave is louder by 6 dB or more."


def test_what_is_shown_has_copies_for_browsers_and_pictures_up_to_one_frequency(recordings, tmp_path, speech):
    sound_files.write(tmp_path / "wide.wav", 2 * speech(2000, 48000)[None].repeat(4, 0), 48000, subtype="FLOAT")
    sound_files.write(tmp_path / "narrow.wav", speech(1000, 8000), 8000)
    sounds = {"wide": tmp_path / "wide.wav", "narrow": tmp_path / "narrow.wav"}
    seen = views.view("x", sounds, tmp_path / "seen", top=8000.0)
    about = [sound_files.info(track["audio"]) for track in seen["tracks"]]
    assert [(i.format, i.subtype, i.channels, i.sample_rate) for i in about] == [
        ("FLAC", "PCM_16", 2, 48000),
        ("FLAC", "PCM_16", 1, 8000),
    ]
    heights = [int.from_bytes(track["picture"].read_bytes()[20:24]) for track in seen["tracks"]]
    assert heights == [8000 * 2048 // 48000 + 1, 8000 * 256 // 8000 + 1]  # the narrow one is padded above 4 kHz


@pytest.fixture
def scores(tmp_path):
    """A root with two folders of results, a hidden one, links that lead out, and a secret beside it."""
    root = tmp_path / "scores"
    for name in ("one", "deep/two", ".hidden", "deep/er/and/deeper/still"):
        (root / name).mkdir(parents=True)
        (root / name / "table.md").write_text(f"# {name}")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "table.md").write_text("# secret")
    (secret / "secret.png").write_bytes(b"\x89PNG secret")
    (root / "link").symlink_to(secret)
    (root / "linked").mkdir()
    (root / "linked" / "table.md").symlink_to(secret / "table.md")
    (root / "one" / "chart.png").write_bytes(b"\x89PNG chart")
    (root / "one" / "secret.png").symlink_to(secret / "secret.png")
    (root / "one" / "spectrograms").symlink_to(secret)
    return root


def test_results_are_those_below_the_root_alone(scores):
    results = ResultFolders(scores)
    assert results.names() == ["deep/two", "one"]
    assert results.table("deep/two") == "# deep/two"
    assert [path.name for path in results.pictures("one")] == ["chart.png"]
    for name in ("..", "../secret", str(scores.parent / "secret"), "link", "linked", "one/../../secret", ".", ""):
        with pytest.raises(DataError, match="no results with this name"):
            results.table(name)
    with pytest.raises(ConfigError, match="no such folder"):
        ResultFolders(scores / "none")


def test_a_root_that_is_a_link_itself_is_the_users_choice(scores, tmp_path):
    (tmp_path / "alias").symlink_to(scores)
    assert ResultFolders(tmp_path / "alias").names() == ["deep/two", "one"]


def test_results_are_shown_with_their_sounds(scores, desk, speech):
    for system in ("clean", "default", "raw_input"):
        sound_files.write(scores / "one" / "sounds" / "say.wav" / f"{system}.flac", speech(4000), RATE)
    shower = replace(desk, results=ResultFolders(scores))
    said, table, pictures, player = shower.show("one")
    assert (said, table) == ("", "# one")
    assert [(picture["name"], picture["file"].read_bytes()) for picture in pictures] == [("chart", b"\x89PNG chart")]
    assert [track["label"] for track in player["items"][0]["tracks"]] == ["raw input", "default", "clean"]
    said, table, pictures, player = shower.show("../secret")
    assert "../secret: no results with this name" in said
    assert (table, pictures, player) == ("", None, None)


def test_closing_stops_work_waits_for_it_and_lets_none_begin(recordings, desk):
    order, closer = [], threading.Thread(target=lambda: (desk.shift.close(), order.append("closed")))

    def progress(part, *, desc):
        if desc == "loading tiny":
            closer.start()
            while closer.is_alive() and not desk.shift._closed:
                time.sleep(0.01)
        order.append(desc)

    file, request = str(recordings / "a/take.wav"), RestoreRequest("tiny", "cpu")
    said, shown = desk.restore([file, file], request, progress)
    closer.join(10)
    assert (order, shown) == (["loading tiny", "closed"], None)
    assert "The server is closing" in said
    assert "The server is closing" in desk.restore([file], request, silent)[0]
    assert list(desk.home.iterdir()) == []


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
def test_a_limit_is_at_least_one(name):
    with pytest.raises(ConfigError, match=f"limit {name} is 0"):
        Limits(**{name: 0})


def test_the_models_that_are_offered_restore_by_themselves():
    offered = checkpoint.shipped()
    assert offered[0] == "default"
    assert {"base", "causal-base"}.isdisjoint(offered)
    assert "causal" in offered


async def echo(scope, receive, send):
    """Answers with the request's body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(path, body=b"", kind=b"application/json", method="POST"):
    """(status, headers, body) of a request through the guard, its body in two parts."""
    parts = [{"type": "http.request", "body": body[9:]}, {"type": "http.request", "body": body[:9], "more_body": True}]
    sent = []

    async def receive():
        return parts.pop()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", kind)]}
    asyncio.run(SecurityMiddleware(echo)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_the_guard_lets_through_what_stays_here():
    body = json.dumps(
        {"data": [[{"path": "/files/a.wav", "url": "http://127.0.0.1/gradio_api/file=/files/a.wav"}]]}
    ).encode()
    status, headers, echoed = ask("/gradio_api/queue/join", body)
    assert (status, echoed) == (200, body)
    assert headers[b"content-security-policy"] == POLICY.encode()
    assert "http" not in POLICY
    assert ask("/gradio_api/file=/files/a.wav", method="GET")[0] == 200
    assert ask("/gradio_api/upload", b"x" * (MOST + 1), b"multipart/form-data")[0] == 200


@pytest.mark.parametrize("place", ["http://example.org/a.wav", "https:/example.org", "ftp://example.org"])
def test_the_guard_refuses_to_fetch(place):
    assert ask(f"/gradio_api/file={place}", method="GET")[0] == 403
    assert ask("/gradio_api/queue/join", json.dumps({"data": [{"a": [{"path": place}]}]}).encode())[0] == 403


def test_the_guard_refuses_long_requests():
    assert ask("/gradio_api/queue/join", b"[" + b" " * MOST + b"]")[0] == 403


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("marker"),)


@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pt", "evil.onnx"])
def test_a_model_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=name):
        work.Models({"evil": [name]}).get("evil", "cpu")
    assert not Path("marker").exists()
