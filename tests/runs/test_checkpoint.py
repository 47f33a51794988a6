"""Laws of what a run keeps: the bytes belong to their facts, and of two states one is always whole."""

from __future__ import annotations

import json

import pytest
import torch

from scanbridge.errors import UserError
from scanbridge.runs.checkpoint import Generations, environment, flatten, load_tensors, save_tensors


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b.c": torch.arange(4), "d": torch.tensor(value, dtype=torch.float64)}


def test_tensors_come_back_with_bits_and_facts(tmp_path):
    save_tensors(tmp_path / "w.safetensors", tensors(0.1), {"images": 3})
    found, facts = load_tensors(tmp_path / "w.safetensors")
    assert found.keys() == tensors(0.1).keys()
    assert all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors(0.1).items()
    )
    assert facts["images"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "w.json"}


def test_views_and_transposed_tensors_are_kept_by_value(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "w.safetensors", {"turned": whole.T, "row": whole[1]}, {})
    found, _ = load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["row"], whole[1])


@pytest.mark.parametrize("spoil", ["cut", "flip", "lost", "other", "facts lost", "facts broken", "facts foreign"])
def test_weights_that_do_not_belong_to_their_facts_are_refused(tmp_path, spoil):
    path, facts = tmp_path / "w.safetensors", tmp_path / "w.json"
    save_tensors(path, tensors(1.0), {})
    data = path.read_bytes()
    match spoil:
        case "cut":
            path.write_bytes(data[:-1])
        case "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "lost":
            path.unlink()
        case "other":
            save_tensors(tmp_path / "o.safetensors", tensors(2.0), {})
            (tmp_path / "o.safetensors").replace(path)
        case "facts lost":
            facts.unlink()
        case "facts broken":
            facts.write_text(facts.read_text()[:-5])
        case "facts foreign":
            facts.write_text("{}")
    with pytest.raises(UserError, match=r"w\.(safetensors|json)"):
        load_tensors(path)


def test_what_is_no_safetensors_is_refused_even_with_its_hash(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, tensors(1.0), {})
    import hashlib

    path.write_bytes(b"\x80\x04 a pickle")
    (tmp_path / "w.json").write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    with pytest.raises(UserError, match="not readable"):
        load_tensors(path)


def test_the_newest_whole_generation_is_read(tmp_path):
    assert Generations(tmp_path).load() is None
    writer = Generations(tmp_path)
    for images in (0, 10, 20, 30):
        writer.save(tensors(images), {"images": images})
        found = Generations(tmp_path).load()
        assert found is not None
        assert found[1]["images"] == images
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["state-0.safetensors", "state-0.json", "state-1.safetensors", "state-1.json"])
def test_one_damaged_file_costs_one_generation_at_most(tmp_path, damage):
    writer = Generations(tmp_path)
    for images in (0, 10):
        writer.save(tensors(images), {"images": images})
    (tmp_path / damage).write_bytes(b"{")
    reader = Generations(tmp_path)
    found = reader.load()
    assert found is not None
    assert found[1]["images"] == (10 if "state-0" in damage else 0)
    reader.save(tensors(5), {"images": 5})  # over the damaged one, whatever numbers stand there
    assert all(load_tensors(path) for path in tmp_path.glob("*.safetensors"))


def test_two_damaged_generations_are_none(tmp_path):
    writer = Generations(tmp_path)
    for images in (0, 10):
        writer.save(tensors(images), {"images": images})
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    assert Generations(tmp_path).load() is None


def test_the_state_of_an_optimiser_is_parted_into_tensors_and_numbers():
    found, plain = flatten("o", {"0": {"step": torch.tensor(3.0), "exp": torch.ones(2), "lr": 0.1}, "name": "adam"})
    assert set(found) == {"o.0.step", "o.0.exp"}
    assert plain == {"o.0.lr": 0.1, "o.name": "adam"}


def test_the_environment_is_json():
    said = json.loads(json.dumps(environment()))
    assert said["versions"]["torch"]
    assert said["processors"] > 0
