"""The page, the only module that imports gradio. It works offline and loads nothing from other servers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils, routes

from twostage import __version__
from twostage.app.access import Access
from twostage.app.limits import Limits
from twostage.app.results import ResultFolders
from twostage.app.server import Address, application, listening
from twostage.app.service import RestoreRequest, Service, serving_from
from twostage.app.visitors import Visitors
from twostage.audio.sound_files import FORMATS
from twostage.data.sensors import PRESETS

KEEP = "same as the input"  # choice of output format
HEAD = """
# twostage
Drop recordings of a bone-conduction or throat microphone, at most {files} files of {mb} MB, {seconds} s in all.
The high band that the microphone missed is estimated from the rest: it is a guess, and a sound can come out wrong.
Recordings stay on the machine that serves this page. twostage {version}{documentation}
"""
SENSORS = {
    "any": "another sensor for every seed",
    "eben": "a low-pass at 600 Hz, the simulation of the EBEN paper",
    "throat": "a throat microphone",
    "in-ear": "a microphone in the closed ear canal",
    "forehead": "a bone-conduction microphone on the forehead",
    "temple": "a bone-conduction microphone at the temple",
}
FONTS, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # fonts of the visitor's system
THREADS = 32  # requests of visitors that run or wait in the service; more wait in gradio, which has 40 threads
HINT = "The result appears here: sound, spectrograms and levels."
EMPTY = '<div class="ts-player"></div>'
PICTURES = """<div class="ts-shown">{{#each value}}<figure><img src="{{this.file.url}}" alt="{{this.name}}">
<figcaption>{{this.name}}</figcaption></figure>{{/each}}</div>"""


@contextmanager
def serving(
    address: Address,
    models: Mapping[str, list[str]],
    devices: list[str],
    limits: Limits | None = None,
    *,
    results: ResultFolders | None = None,
    seconds: float = 10.0,
    access: Access | None = None,
) -> Iterator[str]:
    """Serve the page and the HTTP interface for programs, and yield the address.

    At the end of the block, uploads and results are deleted. ``models`` are paths by label. The first label and the
    first device are the defaults.
    """
    limits = limits or Limits()
    with (
        serving_from(models, devices, limits, results=results, seconds=seconds) as service,
        _environment(service.home),
    ):
        visitors = Visitors()
        app = application(service, access or Access(address.host), visitors)
        page = build(service, visitors)
        _mount(page, app, limits)
        try:
            with listening(app, address, service) as url:
                yield url
        finally:
            page.close(verbose=False)


def _mount(page: Any, app: Any, limits: Limits) -> None:
    """Serve the page at all paths of ``app`` that do not belong to the interface for programs."""
    page.queue(max_size=limits.queue, default_concurrency_limit=limits.jobs, api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        show_error=False,  # internal errors are logged, not shown
        max_file_size=f"{limits.mb}mb",
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        theme=gr.themes.Default(font=FONTS, font_mono=MONO),
        css=_file("page.css"),
    )
    page.has_launched = True  # otherwise a mounted page accepts paths of files that were not uploaded


@contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Make gradio and matplotlib store files only in ``home``, and disable gradio's analytics."""
    files = str(home / "files")
    variables = {
        "GRADIO_TEMP_DIR": files,
        "GRADIO_EXAMPLES_CACHE": str(home / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(home / "matplotlib")),
    }
    previous = {name: os.environ.get(name) for name in variables}
    previous_folder, routes.DEFAULT_TEMP_DIR = routes.DEFAULT_TEMP_DIR, files  # gradio reads its variable on import
    os.environ.update(variables)
    try:
        yield
    finally:
        routes.DEFAULT_TEMP_DIR = previous_folder
        for name, value in previous.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def build(service: Service, visitors: Visitors) -> Any:
    """The page as gradio's Blocks."""
    every = min(60, service.limits.keep)
    with gr.Blocks(title="twostage", analytics_enabled=False, delete_cache=(every, service.limits.keep)) as page:
        gr.Markdown(_heading(service.limits), elem_classes="ts-title")
        with gr.Tabs():
            with gr.Tab("Restore"):
                _restore_tab(service, visitors)
            with gr.Tab("Simulate"):
                _simulate_tab(service, visitors)
            if service.results:
                with gr.Tab("Results"):
                    _results_tab(service, page, visitors)
    return page


def _restore_tab(service: Service, visitors: Visitors) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Recordings", file_count="multiple", height=150, elem_id="recordings")
            recorded = _microphone()
            sample = _sample_button(service, "throat", "Use the sample recording")
            model, device = _choices(service)
            with gr.Accordion("Settings", open=False):
                rate = gr.Radio(["model", "input"], value="model", label="Sample rate of the output")
                suffix = gr.Dropdown([KEEP, *FORMATS], value=KEEP, label="Format of the output")
                level = gr.Radio(["input", "model"], value="input", label="Loudness of the output")
                low = gr.Number(0, label="Keep the input itself below (Hz)", minimum=0)
                full = gr.Radio(["restore", "copy", "error"], value="restore", label="A channel that is full-band")
            button = gr.Button("Restore", variant="primary", elem_id="restore")
        with gr.Column(scale=5, min_width=300):
            message, player = _message("restored", HINT), _player("restored-player")
    service = _publishing(service, player)

    def restore(
        files: list[str] | None,
        recorded: str | None,
        model: str,
        device: str,
        rate: str,
        suffix: str,
        level: str,
        low: float | None,
        full: str,
        visitor: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 - how gradio hands it over
    ) -> Any:
        request = RestoreRequest(model, device, rate, None if suffix == KEEP else suffix, level, float(low or 0), full)
        check = visitors.check(visitor.session_hash)
        return service.restore([*(files or []), *([recorded] if recorded else [])], request, progress, check)

    inputs = [files, recorded, model, device, rate, suffix, level, low, full]
    _work_on(button.click, restore, inputs, [message, player], service)
    _make_exclusive(files, recorded)
    if sample:
        _on(sample.click, lambda: ([service.sample("throat")], None), [], [files, recorded])


def _simulate_tab(service: Service, visitors: Visitors) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.Markdown("Simulate a body-worn sensor from clean speech of any microphone, then restore the result.")
            file = gr.File(label="Clean speech", height=150, elem_id="clean")
            speech = _microphone()
            sample = _sample_button(service, "clean", "Use the clean sample")
            explained = "; ".join(f"{name}: {what}" for name, what in SENSORS.items())
            sensor = gr.Radio(list(PRESETS), value="throat", label="Sensor", info=explained)
            seed = gr.Number(
                0, label="Seed", precision=0, info="Each number gives a different recording of the same sensor."
            )
            model, device = _choices(service)
            button = gr.Button("Simulate and restore", variant="primary", elem_id="simulate")
        with gr.Column(scale=5, min_width=300):
            message, player = _message("simulated", HINT), _player("simulated-player")
    service = _publishing(service, player)

    def simulate(
        file: str | None,
        speech: str | None,
        sensor: str,
        seed: int | None,
        model: str,
        device: str,
        visitor: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        check = visitors.check(visitor.session_hash)
        return service.simulate(file or speech, sensor, int(seed or 0), RestoreRequest(model, device), progress, check)

    _make_exclusive(file, speech)
    _work_on(button.click, simulate, [file, speech, sensor, seed, model, device], [message, player], service)
    if sample:
        _on(sample.click, lambda: (service.sample("clean"), None), [], [file, speech])


def _results_tab(service: Service, page: Any, visitors: Visitors) -> None:
    results = service.results
    assert results is not None
    with gr.Row():
        folder = gr.Dropdown(results.names(), value=None, label="Folder", elem_id="folder")
        refresh = gr.Button("Refresh", scale=0, min_width=160)
    message = _message("results-message")
    table = gr.Markdown(elem_classes="ts-table")
    player = _player("results-player")
    pictures = gr.HTML(html_template=PICTURES, js_on_load=None)
    service = _publishing(service, player)

    def show(
        name: str | None,
        visitor: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        return service.show(name, progress, visitors.check(visitor.session_hash))

    _work_on(folder.change, show, [folder], [message, table, pictures, player], service)
    _on(refresh.click, lambda: gr.Dropdown(choices=results.names()), [], [folder])
    _on(page.load, lambda: gr.Dropdown(choices=results.names()), [], [folder])


def _work_on(event: Any, do: Any, inputs: list[Any], outputs: list[Any], service: Service) -> None:
    """Run ``do``, which waits for its turn in the service's own queue; the first output shows its progress."""
    shared = {"concurrency_id": "work", "concurrency_limit": min(service.limits.jobs + service.limits.queue, THREADS)}
    _on(event, do, inputs, outputs, queue=True, show_progress_on=outputs[0], scroll_to_output=True, **shared)


def _make_exclusive(files: Any, recorded: Any) -> None:
    """Clear uploaded files when something is recorded, and vice versa; the browser does this without the server."""
    _on(recorded.stop_recording, None, [], [files], js="() => null")
    _on(files.upload, None, [], [recorded], js="() => null")


def _on(event: Any, do: Any, inputs: list[Any], outputs: list[Any], *, queue: bool = False, **options: Any) -> None:
    """Run ``do`` at an event, without gradio's queue unless it takes long.

    Gradio loses a click that comes just when an earlier event of its queue ends, as after a page has loaded.
    """
    event(do, inputs, outputs, queue=queue, api_visibility="private", **options)


def _publishing(service: Service, player: Any) -> Service:
    """The service with outputs that ``player`` owns: copied to gradio's folder, which serves and later deletes them."""
    return replace(
        service, publish=lambda value: processing_utils.move_files_to_cache(_files(value), player, postprocess=True)
    )


def _files(value: Any) -> Any:
    """Convert the paths in plain values to gradio's files."""
    if isinstance(value, Path):
        return gr.FileData(path=str(value), orig_name=value.name).model_dump()
    if isinstance(value, dict):
        return {key: _files(item) for key, item in value.items()}
    return [_files(item) for item in value] if isinstance(value, list | tuple) else value


def _choices(service: Service) -> tuple[Any, Any]:
    labels, devices = service.models.labels, list(service.devices)
    return gr.Dropdown(labels, value=labels[0], label="Model"), gr.Radio(devices, value=devices[0], label="Device")


def _microphone() -> Any:
    return gr.Audio(sources=["microphone"], type="filepath", label="Microphone", editable=False, buttons=[])


def _sample_button(service: Service, name: str, label: str) -> Any:
    return gr.Button(label, size="sm", elem_id=f"sample-{name}") if service.sample(name) else None


def _message(name: str, hint: str = "") -> Any:
    return gr.HTML(f"<p>{hint}</p>" if hint else None, elem_id=name, elem_classes="ts-said")


def _player(name: str) -> Any:
    return gr.HTML(html_template=EMPTY, js_on_load=_file("player.js"), elem_id=name, apply_default_css=False)


def _heading(limits: Limits) -> str:
    """The heading, with a link to the documentation if the metadata of the package contains its address."""
    try:
        links = dict(text.split(", ", 1) for text in metadata.metadata("twostage").get_all("Project-URL") or [])
    except metadata.PackageNotFoundError:
        links = {}
    documentation = f" · [Documentation]({links['Documentation']})" if "Documentation" in links else ""
    numbers = {"files": limits.files, "mb": limits.mb, "seconds": limits.seconds}
    return HEAD.format(**numbers, version=__version__, documentation=documentation)


def _file(name: str) -> str:
    return resources.files("twostage.app").joinpath(name).read_text(encoding="utf-8")
