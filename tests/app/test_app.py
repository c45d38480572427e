"""Tests of the web application without its page: limits, jobs, views, evaluation results, security middleware."""

import asyncio
import json
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
from unsafe_pickles import TouchesFile

from twostage.app import page, views, work
from twostage.app.limits import Limits
from twostage.app.results import ResultFolders
from twostage.app.security import MOST, POLICY, SecurityMiddleware
from twostage.app.service import RestoreRequest, Service
from twostage.app.storage import Storage
from twostage.app.work_queue import WorkQueue
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
    """A folder of uploads: readable files, two of the same name, one that is too long and one that is no audio."""
    folder = tmp_path / "uploads"
    for name, seed in (("a/take.wav", 0), ("b/take.wav", 1)):
        sound_files.write(folder / name, speech(8000, seed=seed), RATE)
    sound_files.write(folder / "stereo.flac", np.stack([speech(9000), speech(9000, seed=2)]), 44100, subtype="PCM_24")
    sound_files.write(folder / "long.wav", np.zeros((2, 6 * RATE)), RATE)
    (folder / "text.wav").write_text("not a sound" * 30)
    return folder


@pytest.fixture
def service(tmp_path, tiny_path):
    """A service that publishes files by copying them to a folder that outlives the request."""
    home, published = tmp_path / "home", tmp_path / "published"
    home.mkdir()
    published.mkdir()

    def publish(value):
        if isinstance(value, Path):
            return Path(shutil.copy(value, published / f"{len(list(published.iterdir()))}-{value.name}"))
        if isinstance(value, dict):
            return {key: publish(item) for key, item in value.items()}
        return [publish(item) for item in value] if isinstance(value, list | tuple) else value

    return Service(Storage(home, 100), work.Models({"tiny": [str(tiny_path)]}), ["cpu"], LIMITS, publish)


def no_progress(part, *, desc):
    pass


def test_the_page_restores_files_exactly_as_the_command_does(recordings, tiny, tiny_path, tmp_path):
    progress = []
    sources = [recordings / "a/take.wav", recordings / "stereo.flac"]
    outcome = work.restore_all(tiny, sources, tmp_path / "out", LIMITS, Options(), progress=progress.append)
    assert main(["restore", *map(str, sources), "-o", str(tmp_path / "cli"), "--model", str(tiny_path)]) == 0
    for view, source in zip(outcome.views, sources, strict=True):
        assert view["file"].read_bytes() == (tmp_path / "cli" / source.name).read_bytes()
    assert [view["file"].name for view in outcome.views] == ["take-restored.wav", "stereo-restored.flac"]
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1, abs=1e-3)


def test_an_unreadable_file_does_not_stop_the_others_and_no_message_shows_a_folder(recordings, service):
    files = [recordings / name for name in ("a/take.wav", "text.wav", "long.wav")]
    message, player = service.restore([*map(str, files)], RestoreRequest("tiny", "cpu"), no_progress)
    assert [item["name"] for item in player["items"]] == ["take.wav"]
    assert "1 restored, 2 failed" in message
    assert "text.wav: not a sound file" in message
    assert "long.wav: too long, the channels so far have 12 s of sound together; the limit is 10 s" in message
    assert str(recordings.parent) not in message
    assert list(service.home.iterdir()) == []  # only published files outlive a request


def test_the_archive_contains_both_files_of_the_same_name(recordings, service):
    files = [str(recordings / name) for name in ("a/take.wav", "b/take.wav")]
    _, player = service.restore(files, RestoreRequest("tiny", "cpu", suffix="flac"), no_progress)
    with ZipFile(player["archive"]) as archive:
        assert archive.namelist() == ["take-restored.flac", "take-restored (2).flac"]
        assert [archive.read(name) for name in archive.namelist()] == [
            item["file"].read_bytes() for item in player["items"]
        ]


@pytest.mark.parametrize(
    ("files", "restore_request", "error"),
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
def test_every_invalid_request_is_answered_with_an_error_message(recordings, service, files, restore_request, error):
    message, player = service.restore([str(recordings / name) for name in files], restore_request, no_progress)
    assert error in message
    assert 'class="ts-bad"' in message
    assert player is None


def test_the_length_limit_also_counts_decoded_seconds(recordings):
    count_seconds = work.bounded(Path("a.wav"), LIMITS, lambda seconds: None)
    count_seconds(10.0)
    with pytest.raises(AudioError, match=r"a\.wav: too long"):
        count_seconds(0.1)


def test_the_page_simulates_a_sensor_exactly_as_the_command_does(tmp_path, speech, service):
    sound_files.write(tmp_path / "clean" / "say.wav", speech(8000), RATE)
    clean = str(tmp_path / "clean" / "say.wav")
    assert main(["simulate", clean, str(tmp_path / "bone"), "--sensor", "in-ear", "--seed", "3"]) == 0
    output = work.simulate_one(Path(clean), tmp_path / "app", LIMITS, sensor="in-ear", seed=3)
    assert output.read_bytes() == (tmp_path / "bone" / "say.wav").read_bytes()
    message, player = service.simulate(clean, "in-ear", 3, RestoreRequest("tiny", "cpu"), no_progress)
    (item,) = player["items"]
    assert "1 restored" in message
    assert [track["label"] for track in item["tracks"]] == ["clean", "in-ear", "restored"]
    assert item["file"].name.endswith("-say-in-ear-restored.wav")
    message, player = service.simulate(clean, "toe", 0, RestoreRequest("tiny", "cpu"), no_progress)
    assert "sensor toe: none of any, eben" in message
    message, player = service.simulate(None, "throat", 0, RestoreRequest("tiny", "cpu"), no_progress)
    assert "Nothing to restore" in message


def test_a_sample_is_served_from_a_copy(service):
    copy = Path(service.sample("throat"))
    assert copy.parent.parent == service.home
    assert copy.read_bytes() == work.sample("throat").read_bytes()
    assert service.sample("nobody") is None


def test_third_octave_levels_of_white_noise():
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 20 * RATE)).astype(np.float32)
    levels = np.array(views.third_octaves(spectrogram([noise], RATE, noise.shape[1])))
    bandwidth_fraction = np.array(views.CENTERS) * (2 ** (1 / 6) - 2 ** (-1 / 6)) / (RATE / 2)  # of -20 dB
    np.testing.assert_allclose(levels, -20 + 10 * np.log10(bandwidth_fraction), atol=0.5)
    narrowband_levels = views.third_octaves(spectrogram([noise[:, : 2 * RATE]], 8000, 2 * RATE))
    assert [level is None for level in narrowband_levels] == [hertz * 2 ** (1 / 6) > 4000 for hertz in views.CENTERS]


def test_the_summary_names_the_bands_that_became_louder():
    before = [-40.0] * 18 + [None] * 3
    after = [*[-40.0] * 5, -33.0, *[-40.0] * 9, *[-30.0] * 6]
    assert views.gained(before, after) == "Louder by 6 dB or more from 0.18 to 0.22 kHz, 1.8 to 7.1 kHz."
    assert views.gained(before, before) == "No third octave is louder by 6 dB or more."


def test_views_have_16_bit_stereo_flac_copies_and_spectrograms_up_to_the_same_frequency(recordings, tmp_path, speech):
    sound_files.write(tmp_path / "wide.wav", 2 * speech(2000, 48000)[None].repeat(4, 0), 48000, subtype="FLOAT")
    sound_files.write(tmp_path / "narrow.wav", speech(1000, 8000), 8000)
    sounds = {"wide": tmp_path / "wide.wav", "narrow": tmp_path / "narrow.wav"}
    view = views.view("x", sounds, tmp_path / "seen", top=8000.0)
    infos = [sound_files.info(track["audio"]) for track in view["tracks"]]
    assert [(i.format, i.subtype, i.channels, i.sample_rate) for i in infos] == [
        ("FLAC", "PCM_16", 2, 48000),
        ("FLAC", "PCM_16", 1, 8000),
    ]
    heights = [int.from_bytes(track["picture"].read_bytes()[20:24]) for track in view["tracks"]]
    assert heights == [
        8000 * 2048 // 48000 + 1,
        8000 * 256 // 8000 + 1,
    ]  # the second one is padded above 4 kHz


@pytest.fixture
def scores(tmp_path):
    """A root with two result folders, a hidden one, symbolic links out of it, and a private folder beside it."""
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


def test_only_results_below_the_root_are_listed_and_read(scores):
    results = ResultFolders(scores)
    assert results.names() == ["deep/two", "one"]
    assert results.table("deep/two") == "# deep/two"
    assert [path.name for path in results.pictures("one")] == ["chart.png"]
    for name in ("..", "../secret", str(scores.parent / "secret"), "link", "linked", "one/../../secret", ".", ""):
        with pytest.raises(DataError, match="no results with this name"):
            results.table(name)
    with pytest.raises(ConfigError, match="no such folder"):
        ResultFolders(scores / "none")


def test_the_root_itself_may_be_a_symbolic_link(scores, tmp_path):
    (tmp_path / "alias").symlink_to(scores)
    assert ResultFolders(tmp_path / "alias").names() == ["deep/two", "one"]


def test_results_are_shown_with_their_audio(scores, service, speech):
    for system in ("clean", "default", "raw_input"):
        sound_files.write(scores / "one" / "sounds" / "say.wav" / f"{system}.flac", speech(4000), RATE)
    service_with_results = replace(service, results=ResultFolders(scores))
    message, table, pictures, player = service_with_results.show("one", no_progress)
    assert (message, table) == ("", "# one")
    assert [(picture["name"], picture["file"].read_bytes()) for picture in pictures] == [("chart", b"\x89PNG chart")]
    assert [track["label"] for track in player["items"][0]["tracks"]] == ["raw input", "default", "clean"]
    message, table, pictures, player = service_with_results.show("../secret", no_progress)
    assert "../secret: no results with this name" in message
    assert (table, pictures, player) == ("", None, None)


def test_closing_stops_the_running_job_waits_for_its_end_and_refuses_new_jobs(recordings, service):
    events, closing_thread = [], threading.Thread(target=lambda: (service.queue.close(), events.append("closed")))

    def progress(part, *, desc):
        if desc == "loading tiny":
            closing_thread.start()
            while closing_thread.is_alive() and not service.queue._closed:
                time.sleep(0.01)
        events.append(desc)

    file, restore_request = str(recordings / "a/take.wav"), RestoreRequest("tiny", "cpu")
    message, player = service.restore([file, file], restore_request, progress)
    closing_thread.join(10)
    assert (events, player) == (["loading tiny", "closed"], None)
    assert "The server is closing" in message
    assert "The server is closing" in service.restore([file], restore_request, no_progress)[0]
    assert list(service.home.iterdir()) == []


def test_a_waiting_visitor_reads_how_many_are_before_and_is_refused_by_a_full_queue(recordings, service):
    service = replace(service, queue=WorkQueue(jobs=1, places=2))
    file, request, said, threads = str(recordings / "a/take.wav"), RestoreRequest("tiny", "cpu"), {}, []

    def restore(name):
        texts = said.setdefault(name, [])
        message, _ = service.restore([file], request, lambda part, *, desc: texts.append(desc))
        texts.append(message)

    with service.queue.work():  # another visitor's request
        for name in ("second", "third"):
            threads.append(threading.Thread(target=restore, args=(name,)))
            threads[-1].start()
            while not said.get(name):
                time.sleep(0.01)
        assert service.restore([file], request, no_progress) == (
            '<p class="ts-bad">The queue is full (2 waiting). Try again in a moment.</p>',
            None,
        )
    for thread in threads:
        thread.join(30)
    assert said["second"][0] == "waiting for 1 earlier request"
    assert said["third"][0] == "waiting for 2 earlier requests"
    assert all(texts[-1].startswith("<p>1 restored") for texts in said.values())


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
def test_a_limit_below_one_is_refused(name):
    with pytest.raises(ConfigError, match=f"limit {name} is 0"):
        Limits(**{name: 0})


def test_only_complete_models_are_offered():
    offered = checkpoint.shipped()
    assert offered[0] == "default"
    assert {"base", "causal-base"}.isdisjoint(offered)
    assert "causal" in offered


async def echo(scope, receive, send):
    """ASGI application that answers with the request's body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(path, body=b"", kind=b"application/json", method="POST"):
    """Return (status, headers, body) of a request through the middleware, which receives the body in two messages."""
    parts = [{"type": "http.request", "body": body[9:]}, {"type": "http.request", "body": body[:9], "more_body": True}]
    sent = []

    async def receive():
        return parts.pop()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", kind)]}
    asyncio.run(SecurityMiddleware(echo)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_requests_for_local_files_pass_the_security_middleware():
    body = json.dumps(
        {"data": [[{"path": "/files/a.wav", "url": "http://127.0.0.1/gradio_api/file=/files/a.wav"}]]}
    ).encode()
    status, headers, echoed = ask("/gradio_api/queue/join", body)
    assert (status, echoed) == (200, body)
    assert headers[b"content-security-policy"] == POLICY.encode()
    assert "http" not in POLICY
    assert ask("/gradio_api/file=/files/a.wav", method="GET")[0] == 200
    assert ask("/gradio_api/upload", b"x" * (MOST + 1), b"multipart/form-data")[0] == 200


@pytest.mark.parametrize("address", ["http://example.org/a.wav", "https:/example.org", "ftp://example.org"])
def test_requests_that_name_a_remote_address_are_refused(address):
    assert ask(f"/gradio_api/file={address}", method="GET")[0] == 403
    assert ask("/gradio_api/queue/join", json.dumps({"data": [{"a": [{"path": address}]}]}).encode())[0] == 403


def test_json_requests_beyond_the_size_limit_are_refused():
    assert ask("/gradio_api/queue/join", b"[" + b" " * MOST + b"]")[0] == 403


@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pt", "evil.onnx"])
def test_a_pickled_model_is_refused_and_its_code_does_not_run(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(TouchesFile()))
    with pytest.raises(CheckpointError, match=name):
        work.Models({"evil": [name]}).get("evil", "cpu")
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    ("urls", "link"),
    [(["Documentation, https://docs.example/"], " · [Documentation](https://docs.example/)"), (None, "")],
)
def test_the_heading_links_to_the_documentation_of_the_package(urls, link, monkeypatch):
    metadata = SimpleNamespace(get_all=lambda field: urls if field == "Project-URL" else None)
    monkeypatch.setattr("importlib.metadata.metadata", lambda package: metadata)
    heading = page._heading(Limits())
    assert ("[Documentation](" in heading) == bool(link)
    assert link in heading
