"""Stability AI on Bedrock: what each model is asked, what is said not to be; AWS's own reader of such requests."""

from __future__ import annotations

import msgspec
import pytest
from botocore.awsrequest import HeadersDict
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.session import Session

from streamproxy.core.conversation import JobId
from streamproxy.errors import Failure
from streamproxy.providers.aws import plain
from streamproxy.simulator.bedrock import REFUSALS
from streamproxy.simulator.script import Send
from tests.contract.peer import sent
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

SD3, INPAINT = "stability.sd3-5-large-v1:0", "us.stability.stable-image-inpaint-v1:0"
ERASE, REMOVE = "us.stability.stable-image-erase-object-v1:0", "us.stability.stable-image-remove-background-v1:0"
TRANSFER = "us.stability.stable-style-transfer-v1:0"
BARE = bytes(PNG.base64).decode()
MODEL = Session().get_service_model("bedrock-runtime")
INVOKE = MODEL.operation_model("InvokeModel")


@pytest.mark.parametrize("adapter", ["bedrock", "nova"])
def test_botocore_writes_the_same_request(adapter: str) -> None:
    request, value, _ = paid(job(adapter, SD3 if adapter == "bedrock" else "amazon.nova-canvas-v1:0"))
    given = {"modelId": Scenario(adapter, "one").route.upstream_model, "body": msgspec.json.encode(value)}
    given |= {"contentType": "application/json", "accept": "application/json"}
    theirs = create_serializer("rest-json").serialize_to_request(given, INVOKE)
    assert theirs["url_path"] == request.url.removeprefix("https://bedrock-runtime.{location}.amazonaws.com")
    assert theirs["method"] == request.method
    assert theirs["body"] == msgspec.json.encode(value)
    ours = dict(request.headers)
    assert {name.lower(): text for name, text in theirs["headers"].items()}.items() <= ours.items()


@pytest.mark.parametrize("fault", ["throttled", "unknown", "timeout", "broken", "blocked"])
def test_botocore_reads_the_simulators_errors(fault: str) -> None:
    top, body = REFUSALS[fault]
    assert isinstance(top, Send)
    assert isinstance(body, Send)
    status, *lines = top.data.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    answer = {"status_code": int(status.split()[1]), "headers": headers, "body": body.data}
    parsed = create_parser("rest-json").parse(answer, INVOKE.output_shape)
    known = {shape.name: shape.metadata["error"]["httpStatusCode"] for shape in INVOKE.error_shapes}
    assert known[parsed["Error"]["Code"]] == answer["status_code"]
    assert parsed["Error"]["Message"]


@pytest.mark.parametrize("adapter", ["bedrock", "nova"])
def test_botocore_reads_the_same_answer(adapter: str) -> None:
    [exchange] = Scenario(adapter, "one").exchanges
    answer = {"status_code": 200, "headers": HeadersDict(dict(exchange.head.items)), "body": exchange.body}
    parsed = create_parser("rest-json").parse(answer, INVOKE.output_shape)
    assert (parsed["contentType"], parsed["ResponseMetadata"]["HTTPStatusCode"]) == ("application/json", 200)
    [frame] = Scenario(adapter, "one").play().frames
    assert msgspec.json.decode(parsed["body"])["images"][0].encode() in b"".join(frame.data)


def test_a_generation() -> None:
    request, value, _ = paid(job("bedrock", SD3, {"size": "1536x1024", "seed": 7, "negative_prompt": "dull"}))
    assert request.url.endswith("/model/stability.sd3-5-large-v1%3A0/invoke")
    assert value == {
        **{"prompt": PROMPT, "mode": "text-to-image", "aspect_ratio": "3:2", "output_format": "png"},
        **{"seed": 7, "negative_prompt": "dull"},
    }
    assert told(job("bedrock", "stability.stable-image-core-v1:1", {"output_format": "jpeg"})) == {
        "prompt": PROMPT,
        "output_format": "jpeg",
    }


def test_an_edit() -> None:
    value = told(job("bedrock", SD3, {"size": "1024x1024"}, images=(PNG,)))
    assert value == {
        **{"prompt": PROMPT, "image": BARE, "mode": "image-to-image", "strength": 0.75, "output_format": "png"},
    }
    assert told(job("bedrock", SD3, {"strength": 0.3}, images=(PNG,)))["strength"] == 0.3


def test_a_mask_is_white_where_it_changes() -> None:
    _, value, [conversion] = paid(job("bedrock", INPAINT, {"grow_mask": 0}, images=(PNG,), mask=MASK))
    assert conversion.form == "white mask"
    made = bytes(MADE.base64).decode()
    assert value == {"prompt": PROMPT, "image": BARE, "mask": made, "output_format": "png", "grow_mask": 0}


def test_a_model_without_words_is_sent_none() -> None:
    given = job("bedrock", ERASE, images=(PNG,), mask=MASK)
    assert told(given).keys() == {"image", "mask", "output_format"}
    assert told(job("bedrock", REMOVE, {"seed": 1}, images=(PNG,))).keys() == {"image", "output_format"}
    assert not_applied(job("bedrock", REMOVE, {"seed": 1}, images=(PNG,))) == ("prompt", "seed")


def test_two_pictures_of_a_style() -> None:
    value = told(job("bedrock", TRANSFER, {"style_strength": 1}, images=(PNG, PNG)))
    assert (value["init_image"], value["style_image"], value["style_strength"]) == (BARE, BARE, 1)


@pytest.mark.parametrize(("model", "most"), [(SD3, 1), (TRANSFER, 2), ("stability.stable-image-ultra-v1:1", 0)])
def test_images_that_it_does_not_take(model: str, most: int) -> None:
    error = refused(job("bedrock", model, images=(PNG,) * (most + 1)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(
    ("model", "members", "edit", "names"),
    [
        (SD3, {"quality": "high", "output_format": "webp"}, False, ("output_format", "quality")),
        (SD3, {"size": "1024x1024", "strength": 0.5}, False, ("strength",)),
        (SD3, {"size": "1024x1024", "strength": 0.5, "mask": "m"}, True, ("mask", "size")),
        (INPAINT, {"mask": "m", "style_preset": "anime", "output_format": "webp"}, True, ()),
        ("us.stability.stable-image-style-guide-v1:0", {"size": "1024x1024", "fidelity": 0.5}, True, ()),
        ("us.stability.stable-outpaint-v1:0", {"left": 10, "size": "1024x1024"}, True, ("size",)),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], edit: bool, names: tuple[str, ...]) -> None:
    given = job("bedrock", model, members, images=(PNG,) if edit else ())
    assert not_applied(given) == names
    assert told(given).keys().isdisjoint(set(names) - {"output_format"})


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [("seed", "7", 7), ("strength", "0.5", 0.5), ("seed", "x", "x"), ("negative_prompt", "7", "7"), ("seed", 7, 7)],
)
def test_a_forms_numbers_are_numbers(name: str, said: object, value: object) -> None:
    assert plain(name, said) == value


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [("limited", "ThrottlingException", 429), ("broken", "ModelErrorException", 502)],
)
def test_errors_keep_awss_names(name: str, code: str, status: int) -> None:
    error = Scenario("bedrock", name).play().error
    assert error is not None
    assert (error.code, error.status) == (code, status)


def test_what_it_cost_and_its_name() -> None:
    price = CATALOGUE.models[f"bedrock/{SD3}"].price
    run = Scenario("bedrock", "one", about={"price": price}).play()
    assert b'"cost":0.08,' in b"".join(run.frames[-1].data)
    assert [step.id for step in run.steps if isinstance(step, JobId)] == ["1"]
    assert CATALOGUE.models[f"bedrock/{INPAINT}"].price is not None


def test_nothing_of_the_key_is_in_the_request() -> None:
    request, _, _ = paid(job("bedrock", SD3))
    assert b"authorization" not in sent(request)
