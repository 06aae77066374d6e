"""The page: what it gives to a model, what it says of the answers, and how latent dimensions move."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Laplace, Normal, kl_divergence

from infra.errors import UserError
from modalities import AnyModality, Attributes, Sentences
from pipeline import tokenizers
from pipeline.config import Run
from pipeline.forms import form_of
from pipeline.generating import generate
from pipeline.manifest import open_manifest
from pipeline.packaging import Packaged
from pipeline.settings import Examine, Model
from pipeline.studio.examples import examples_of
from pipeline.studio.latents import decodable, decoded, latent, probabilities
from pipeline.studio.server import SameOrigin
from pipeline.train import build
from tests.pipeline.drawn import KINDS, NAMES, ROWS, make

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from pipeline.studio import page, views

pytestmark = pytest.mark.usefixtures("main_module")

NUMBERS = np.arange(5, dtype=np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("drawn") / "data")


def packaged_of(data: Path, *names: str, system: str = "mvae", **others: AnyModality) -> Packaged:
    """An untrained model, of which what it makes hangs on what it is given."""
    manifest = open_manifest(data)
    files = {f"{name}.names.json": manifest.file(f"{name}.names.json") for name in NAMES if name in names}
    if "tale" in others:
        files["tale.model"] = tokenizers.train(["one two three", "three two", "two"], 20, "word")
    kinds = {name: KINDS[name] for name in names} | others
    run = Run("drawn", str(data), kinds, seed=2, model=Model(4, system=system))  # type: ignore[arg-type]
    model = build(run).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    forms = {name: form_of(name, kind, files) for name, kind in kinds.items()}
    return Packaged(run, model, forms, {"step": 1, "data": manifest.fingerprint}, files)


def run_page(studio: page.Studio) -> AppTest:
    def script(studio: object) -> None:
        from pipeline.studio.page import show

        show(studio)

    return AppTest.from_function(script, args=(studio,), default_timeout=60).run()


def plain(elements: Any) -> list[str]:
    """What alerts or captions say, Markdown's signs taken away."""
    return [one.value.replace("\\", "") for one in elements]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, np.ndarray]]]:
    """What the page asked, and what it was answered, the latest last."""
    found: list[tuple[Any, dict[str, np.ndarray]]] = []
    answer = page.answer

    def spied(packaged: Packaged, asked: Any) -> dict[str, np.ndarray]:
        made = answer(packaged, asked)
        found.append((asked, made))
        return made

    monkeypatch.setattr(page, "answer", spied)
    return found


def png(size: tuple[int, int] = (6, 4), colour: object = 80, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")  # type: ignore[arg-type]
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_every_kind_is_given_as_generate_takes_it(data: Path, answers: list) -> None:
    tale = Sentences(vocabulary=10, length=5, embedding=8, hidden=8)
    one = Attributes(1, hidden=(8,))
    names = ("grey", "traits", "label", "string", "numbers", "photo")
    packaged = packaged_of(data, *names, tale=tale, bald=one)
    at = run_page(page.Studio(packaged, None))
    assert not at.exception
    for name in (*names[:-1], "tale", "bald"):
        at.radio(key=f"way {name}").set_value("given")
    at.run()
    at.file_uploader(key="value grey").upload("a photo.png", png((12, 8), (80, 80, 80), "RGB"))
    at.file_uploader(key="value numbers").upload("n.npy", npy(NUMBERS))
    at.multiselect(key="value traits").set_value([0, 2])
    at.multiselect(key="value bald").set_value([0])
    at.selectbox(key="value label").set_value(2)
    at.text_input(key="value string").set_value("3 4")
    at.text_area(key="value tale").set_value("two three")
    at.slider(key="number").set_value(3)
    at.number_input(key="temperature").set_value(0.5)
    at.number_input(key="seed").set_value(7)
    at.radio(key="kind").set_value("sample")
    at.run()
    assert not at.exception
    assert not at.error
    asked, made = answers[-1]
    np.testing.assert_allclose(asked.given["grey"], np.full((4, 6), 80 / 255), atol=1e-6)
    np.testing.assert_array_equal(asked.given["traits"], [1, 0, 1])
    np.testing.assert_array_equal(asked.given["bald"], [1])
    np.testing.assert_array_equal(asked.given["string"], [3, 4, 0, 0])
    np.testing.assert_array_equal(asked.given["numbers"], NUMBERS)
    assert asked.given["label"] == 2
    assert packaged.forms["tale"].write(asked.given["tale"]) == "two three"
    assert plain(at.info) == ["grey: a photo.png has 12 x 8 pixels in mode RGB; given as 6 x 4, grey"]
    told = plain(at.markdown)
    for line in ("label: **cat**", "traits: **old, big**", "tale: **two three**", "bald: **bald**"):
        assert line in told
    wanted = generate(packaged.model, asked.given, ["photo"], 3, sample=True, temperature=0.5, seed=7)
    assert list(made) == ["photo"]
    np.testing.assert_array_equal(made["photo"], wanted["photo"])


@pytest.mark.parametrize(
    ("name", "put", "sentence"),
    [
        ("grey", ("file_uploader", ("a.png", b"no picture", "image/png")), "a.png is no readable picture"),
        ("grey", ("file_uploader", ("a.png", b"", "image/png")), "a.png is no readable picture"),
        ("grey", ("file_uploader", None), "choose a file"),
        ("numbers", ("file_uploader", ("n.npy", b"no numbers", "")), "what is there are no numbers"),
        ("numbers", ("file_uploader", ("n.npy", npy(np.arange(3)), "")), "expected 5 numbers, got 3"),
        ("tale", ("text_area", ""), "this text is empty: leave it out where there is none"),
        ("tale", ("text_area", "one two one two one"), "this text has 5 tokens, and the model reads at most 4"),
        ("string", ("text_input", "abc"), "this model has no tokenizer, so give a list of 4 tokens"),
    ],
)
def test_what_is_no_input_is_a_sentence_beside_it_and_nothing_is_made(
    data: Path, answers: list, name: str, put: tuple[str, Any], sentence: str
) -> None:
    tale = Sentences(vocabulary=10, length=5, embedding=8, hidden=8)
    at = run_page(page.Studio(packaged_of(data, "grey", "numbers", "string", "label", tale=tale), None))
    at.radio(key=f"way {name}").set_value("given").run()
    before = len(answers)
    getattr(at, put[0])(key=f"value {name}").set_value(put[1]).run()
    assert not at.exception
    assert len(plain(at.sidebar.error)) == 1
    assert sentence in plain(at.sidebar.error)[0]
    assert "--given" not in at.sidebar.error[0].value
    assert "/" not in plain(at.sidebar.error)[0], "the place of a passing copy"
    assert plain(at.warning) == ["Nothing is made until what is marked at the left is put right."]
    assert len(answers) == before
    at.radio(key=f"way {name}").set_value("absent").run()
    assert not at.error
    assert len(answers) == before + 1


def test_a_text_that_begins_with_an_at_sign_names_no_file(data: Path, tmp_path: Path, answers: list) -> None:
    (tmp_path / "secret.txt").write_text("two")
    tale = Sentences(vocabulary=10, length=5, embedding=8, hidden=8)
    packaged = packaged_of(data, "label", tale=tale)
    at = run_page(page.Studio(packaged, None))
    at.radio(key="way tale").set_value("given").run()
    at.text_area(key="value tale").set_value(f"@{tmp_path}/secret.txt").run()
    assert not at.exception
    given = [asked.given["tale"] for asked, _ in answers if "tale" in asked.given]
    assert "two" not in map(packaged.forms["tale"].write, given)


@pytest.mark.parametrize("system", ["mvae", "mmvae", "mopoe", "svae", "jmvae", "cvae"])
def test_every_system_s_page(data: Path, answers: list, system: str) -> None:
    """Of nothing, of one modality, of two and of all; what a system does not make is said as generate says it."""
    names = ("grey", "traits", "label")
    packaged = packaged_of(data, *names, system=system)
    at = run_page(page.Studio(packaged, None))
    for given in ((), ("label",), ("label", "traits"), names):
        for name in given:
            at.radio(key=f"way {name}").set_value("given")
        at.run()
        if "grey" in given:
            at.file_uploader(key="value grey").upload("a.png", png()).run()
        assert not at.exception, at.exception[0].message
        if at.error:
            wanted = [name for name in names if name not in given]
            with pytest.raises(UserError) as refused:
                generate(packaged.model, {name: None for name in names if name in given}, wanted, 1)  # type: ignore[misc]
            assert plain(at.error) == [str(refused.value)]
        else:
            asked, made = answers[-1]
            assert set(asked.given) == set(given)
            assert set(made) == (set(names) - set(given) or set(decodable(packaged.model)))
            assert len([slider for slider in at.slider if slider.key.startswith("z")]) == 4
    assert not at.error, "all systems make something again of all"


def test_samples_of_the_data(data: Path, answers: list) -> None:
    packaged = packaged_of(data, "grey", "label", "string")
    examples = examples_of(packaged)
    assert examples is not None
    assert len(examples) == ROWS
    at = run_page(page.Studio(packaged, examples))
    at.radio(key="way grey").set_value("sample")
    at.text_input(key="example").set_value("test/3").run()
    key, own = examples.sample("3")
    assert key == "test/3"
    np.testing.assert_allclose(own["grey"], np.full((4, 6), 3 / 255), atol=1e-6)
    np.testing.assert_array_equal(answers[-1][0].given["grey"], own["grey"])
    at.text_input(key="example").set_value("99").run()
    assert "the test split has no sample '99': choose a number from 0 to 23, or a key such as test/0" in plain(at.error)
    lacking = next(str(number) for number in range(ROWS) if "string" not in examples.sample(str(number))[1])
    at.radio(key="way string").set_value("sample")
    at.text_input(key="example").set_value(lacking).run()
    assert plain(at.error) == [f"test/{lacking} has no string"]
    assert not at.exception


def test_data_that_are_gone_or_others_have_no_samples(data: Path, tmp_path: Path) -> None:
    packaged = packaged_of(data, "grey", "label")
    assert examples_of(replace(packaged, about={"step": 1, "data": "another"})) is None
    assert examples_of(replace(packaged, run=replace(packaged.run, data=str(tmp_path)))) is None


def test_parts_of_a_picture_are_shown_together_and_magnified_by_a_whole_number(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[np.ndarray], Any]] = []

    def spied(images: list[np.ndarray], caption: Any, **_: Any) -> None:
        drawn.append((images, caption))

    monkeypatch.setattr(views.st, "image", spied)
    packaged = packaged_of(data, "grey", "label", lower=KINDS["grey"])
    whole = replace(packaged, run=replace(packaged.run, examine=Examine(parts=("grey", "lower"))))
    made = {"lower": np.zeros((2, 4, 6), np.float32), "label": np.array([1, 3])}
    views.pictures(whole, made, {"grey": np.ones((4, 6), np.float32)})
    ((images, captions),) = drawn
    assert captions == ["bee", "dog"]
    assert [image.shape for image in images] == [(128, 96, 3)] * 2
    assert (images[0][:64] == 255).all()
    assert (images[0][64:] == 0).all()


def sliders(at: AppTest) -> list[Any]:
    return [slider for slider in at.slider if slider.key.startswith("z")]


def test_sliders_move_the_row_and_a_button_sets_them_back(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = packaged_of(data, "grey", "label", "caption", "numbers")
    rows: list[torch.Tensor] = []
    row = page._row
    monkeypatch.setattr(page, "_row", lambda packaged, start, z_2Z: (rows.append(z_2Z), row(packaged, start, z_2Z)))
    at = run_page(page.Studio(packaged, None))
    at.radio(key="way label").set_value("given").run()
    start = latent(packaged.model, {"label": np.asarray(0)})
    assert [slider.key for slider in sliders(at)] == [f"z{dimension}" for dimension in start.strongest]
    torch.testing.assert_close(rows[-1], start.mean_Z.expand(2, 4))
    first = start.strongest[0]
    sliders(at)[0].set_value(-2.5).run()
    moved = start.mean_Z.clone()
    moved[first] -= 2.5
    torch.testing.assert_close(rows[-1], torch.stack([start.mean_Z, moved]))
    at.selectbox(key="value label").set_value(1).run()
    assert at.slider(key=f"z{first}").value == -2.5, "it stays where it is when something else is given"
    at.button(key="back").click().run()
    assert {slider.value for slider in sliders(at)} == {0.0}
    assert not torch.equal(rows[-2], rows[-1])
    at.number_input(key="dimensions").set_value(2).run()
    assert len(sliders(at)) == 2
    assert not at.exception


@pytest.mark.parametrize(("system", "kind"), [("mvae", "normal"), ("mmvae", "laplace"), ("mopoe", "mixture")])
def test_dimensions_are_ranked_by_their_divergence(data: Path, system: str, kind: str) -> None:
    model = packaged_of(data, "label", "traits", "numbers", system=system).model
    given = {"label": np.asarray(1), "traits": np.array([1, 0, 1], np.float32)}
    if kind != "mixture":
        given = {"label": np.asarray(1)} if kind == "laplace" else given
    found = latent(model, given)
    from pipeline.studio.latents import rows

    with torch.no_grad():
        source, prior = model.posterior(rows(model, given, 1)), model.prior(torch.device("cpu"))
    parts = getattr(source, "components", source)
    weight_T = source.weight_TB[:, 0] if hasattr(source, "weight_TB") else torch.ones(1)
    if kind == "laplace":
        mine = [Laplace(one.mu, one.logscale.exp()) for one in (parts, prior)]
    else:
        mine = [Normal(one.mu, (one.logvar / 2).exp()) for one in (parts, prior)]
    kl_TZ = kl_divergence(*mine).detach().reshape(len(weight_T), -1)
    expected = (weight_T[:, None] * kl_TZ).sum(0).numpy()
    np.testing.assert_allclose(found.activity_Z, expected, rtol=1e-4)
    assert found.strongest == np.argsort(-expected).tolist()
    assert "KL(q(z | label" in found.measure
    torch.testing.assert_close(found.mean_Z, source.mu[0])


def test_of_the_prior_dimensions_are_ranked_by_what_decoders_make_of_them(data: Path) -> None:
    model = packaged_of(data, "grey", "label", "caption").model
    with torch.no_grad():
        for decoder in model.decoders.values():
            first = next(p for p in decoder.parameters() if p.ndim == 2 and p.shape[1] == 4)
            first[:, 2] *= 0  # what nobody looks at
            first[:, 1] *= 0.05
    found = latent(model, {})
    assert found.strongest[-1] == 2
    assert found.activity_Z[2] == 0
    assert found.activity_Z.max() == 1
    assert found.activity_Z[1] < 0.5
    torch.testing.assert_close(found.moved({0: 2.0, 3: -1.0}), torch.tensor([[2.0, 0, 0, -1.0]]))


def test_probabilities_are_the_decoders(data: Path) -> None:
    packaged = packaged_of(data, "label", "traits")
    found = decoded(packaged.model, {}, ["label", "traits"], torch.randn(5, 4))
    label = probabilities(KINDS["label"], found["label"])  # type: ignore[arg-type]
    np.testing.assert_allclose(label, torch.softmax(found["label"], 1), rtol=1e-5)
    traits = probabilities(KINDS["traits"], found["traits"])  # type: ignore[arg-type]
    np.testing.assert_allclose(traits, torch.sigmoid(found["traits"]), rtol=1e-5)


def test_bars_have_names_means_and_spread(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charts: list[dict] = []
    monkeypatch.setattr(views.st, "altair_chart", lambda chart: charts.append(chart.to_dict()))
    packaged = packaged_of(data, "label", "traits")
    found = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.2, 0.1]])
    views.spreads(packaged, {"label": found})
    (rows,) = charts[0]["datasets"].values() if "datasets" in charts[0] else [charts[0]["data"]["values"]]
    assert [row["name"] for row in rows] == ["ant", "bee", "cat", "dog"]
    np.testing.assert_allclose([row["probability"] for row in rows], found.mean(0))
    low, high = np.quantile(found, (0.1, 0.9), axis=0)
    np.testing.assert_allclose([row["from"] for row in rows], low)
    np.testing.assert_allclose([row["to"] for row in rows], high)


@pytest.mark.parametrize(
    ("address", "host", "origin", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8501", "", True),
        ("127.0.0.1", "localhost:9000", "http://localhost:9000", True),  # through a tunnel
        ("127.0.0.1", "127.0.0.1:8501", "http://evil.example", False),
        ("127.0.0.1", "127.0.0.1:8501", "http://127.0.0.1:8000", False),
        ("127.0.0.1", "evil.example:8501", "http://evil.example:8501", False),  # a name that leads here
        ("0.0.0.0", "node7:8501", "http://node7:8501", True),
        ("0.0.0.0", "node7:8501", "http://evil.example", False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_pages_are_refused(kind: str, address: str, host: str, origin: str, allowed: bool) -> None:
    asked, sent = [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    never: Callable[[], Any] = asyncio.Event().wait
    asyncio.run(SameOrigin(inner, address)({"type": kind, "headers": headers}, never, send))
    assert bool(asked) == allowed
    assert bool(sent) == (not allowed)
    if not allowed:
        assert sent[0].get("status", sent[0].get("code")) in (403, 1008)
