"""TFRecord and RLDS: values come back to the bit, damage is told where it lies, presets mean what they say."""

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from vap_gym.cards import load_robot
from vap_gym.data import DataError, EpisodeSet
from vap_gym.data.importing.crc32c import crc32c
from vap_gym.data.importing.example import Value, encode_example, parse_example
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options, Source
from vap_gym.data.importing.tfrecord import read_records, record_offsets, shards_of, write_records
from vap_gym.errors import UnknownNameError
from vap_gym.kinematics import load_chain

VALUES = st.one_of(
    st.lists(st.binary(max_size=40), max_size=4),
    hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32)),
    hnp.arrays(np.int64, st.integers(0, 30)),
)


def slow_crc32c(data: bytes) -> int:
    """The checksum bit by bit, from its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksum_has_the_values_of_rfc_3720() -> None:
    ascending = bytes(range(32))
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(ascending) == 0x46DD794E
    assert crc32c(ascending[::-1]) == 0x113FDB5C


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 129, 257, 1000, 4099])
def test_fast_checksum_is_that_of_the_definition(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == slow_crc32c(data)


@pytest.mark.parametrize("length", [(1 << 20) - 4, (1 << 20) + 70, (3 << 20) + 1])
def test_long_data_with_their_own_checksum_leave_the_residue(length: int) -> None:
    """Across the borders of the pieces that are run side by side: every right CRC-32C has this residue."""
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data + crc32c(data).to_bytes(4, "little")) == 0x48674BC7


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=6))
def test_examples_come_back_to_the_bit(features: dict[str, Value]) -> None:
    assert_same(parse_example(encode_example(features)), features)


def assert_same(read: Mapping[str, Value], written: Mapping[str, Value]) -> None:
    assert read.keys() == written.keys()
    for name, value in written.items():
        other = read[name]
        if isinstance(value, list):
            assert other == value
        else:
            assert not isinstance(other, list)
            assert (other.dtype, other.tobytes()) == (value.dtype, value.tobytes())


def test_numbers_that_are_not_packed_and_unknown_fields_are_read() -> None:
    """As older writers have them: a key and a value each; and a feature list beside, which is passed over."""
    floats = b"".join(b"\x0d" + np.float32(x).tobytes() for x in (1.5, -2))
    integers = b"\x08\x05" + b"\x08" + b"\xff" * 9 + b"\x01"  # 5, -1
    entries = [("f", b"\x12", floats), ("i", b"\x1a", integers), ("none", b"", b"")]
    features = b""
    for name, kind, content in entries:
        feature = kind + bytes([len(content)]) + content if kind else b""
        entry = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + bytes([len(feature)]) + feature
        features += b"\x0a" + bytes([len(entry)]) + entry
    data = b"\x0a" + bytes([len(features)]) + features + b"\x7a\x03abc"  # field 15
    expected: dict[str, Value] = {"f": np.float32([1.5, -2]), "i": np.int64([5, -1]), "none": []}
    assert_same(parse_example(data), expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans(), st.booleans())
def test_records_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], compressed: bool, check: bool
) -> None:
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    write_records(path, records, compressed=compressed)
    read = list(read_records(path, check=check))
    assert [record.data for record in read] == records
    offsets, damage = record_offsets(path)
    assert (offsets, damage) == ([record.offset for record in read], None)


def test_plain_file_that_begins_like_gzip_is_read_as_plain(tmp_path: Path) -> None:
    data = bytes(0x88B1F)  # the length's bytes are 1f 8b 08, gzip's mark
    write_records(tmp_path / "a.tfrecord", [data])
    assert [len(record.data) for record in read_records(tmp_path / "a.tfrecord")] == [len(data)]


def test_folder_of_shards_is_read_in_order_and_without_other_files(tmp_path: Path) -> None:
    for name in (
        "x-train.tfrecord-00001-of-00002",
        "x-train.tfrecord-00000-of-00002",
        "features.json",
        "a.tfrecord.gz",
    ):
        (tmp_path / name).touch()
    names = [path.name for path in shards_of(tmp_path)]
    assert names == ["a.tfrecord.gz", "x-train.tfrecord-00000-of-00002", "x-train.tfrecord-00001-of-00002"]
    with pytest.raises(DataError, match="TFRecord files are needed .*, got none"):
        shards_of(tmp_path / "nowhere")


# Real Bridge


def test_bridge_states_actions_and_pictures_are_those_of_the_decoded_files(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bridge_widowx"
    source = open_source("rlds-bridge", folder, Options())
    report = import_source(source, folder, tmp_path / "set")
    assert (len(report.outcomes), len(report.failed), report.fps) == (13, 0, 5)
    episodes = EpisodeSet(tmp_path / "set")
    for i in range(3):
        decoded, episode = np.load(folder / f"decoded_{i:02d}.npz"), episodes[i]
        assert_same_bits(episode.columns["observation.state"], decoded["state"])
        assert_same_bits(episode.columns["action"], decoded["action"])
        assert_same_bits(episode.columns["observation.gripper_position"], 1 - decoded["state"][:, 6])
        assert episode.task == str(decoded["instruction"])
        for view in ("image_0", "image_1", "image_2"):
            assert_same_bits(episode.frames[view], decoded[view])
        assert (episode.info["action_mode"], episode.info["robot"]) == ("bridge", "widowx")
        assert episode.info["views_left_out"] == {"image_3": "blank"}
        assert "image_3" not in episode.frames


def test_bridge_states_are_poses_of_the_tip_link_of_its_card(shared_data: Path) -> None:
    """The logged angles are small while the gripper, whose x axis goes to the finger tips, points to the table."""
    episode = open_source("rlds-bridge", shared_data / "bridge_widowx", Options()).read("episodes.tfrecord:00003")
    state = episode.columns["observation.state"]
    assert_same_bits(episode.columns["observation.cartesian_position"], np.ascontiguousarray(state[:, :6]))
    card = load_robot("widowx")
    chain = load_chain(card)
    q = torch.zeros(chain.size, dtype=torch.float64)
    tip, gripper = (chain.fk(q, link)[:3, :3].numpy() for link in (card.tip_link, "gripper_link"))
    axes = Rotation.from_euler("xyz", state[:, 3:6]).as_matrix() @ (tip.T @ gripper)
    assert np.allclose(tip.T @ gripper, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-7)
    assert (axes[:, 2, 0] < -0.8).all()


# Made sets


def assert_same_bits(a: NDArray[Any], b: NDArray[Any]) -> None:
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def jpeg(seed: int, size: tuple[int, int] = (8, 6), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def feature(value: NDArray[Any] | list[bytes], encoding: str = "none") -> dict[str, Any]:
    """What features.json says of the steps' values."""
    if isinstance(value, list):
        if value[0][:3] == b"\xff\xd8\xff":
            return {"image": {"shape": {"dimensions": ["8", "6", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}}
        return {"text": {}}
    dimensions = {"dimensions": [str(n) for n in value.shape[1:]]} if value.ndim > 1 else {}
    return {"tensor": {"shape": dimensions, "dtype": value.dtype.name, "encoding": encoding}}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A FeaturesDict of names with slashes."""
    features: dict[str, Any] = {}
    for name in dict.fromkeys(key.split("/")[0] for key in flat):
        inner = {key[len(name) + 1 :]: value for key, value in flat.items() if key.startswith(f"{name}/")}
        features[name] = nested(inner) if inner else flat[name]
    return {"featuresDict": {"features": features}}


def write_rlds(folder: Path, episodes: list[dict[str, Any]], *, told: int | None = None, zipped: str = "") -> Path:
    """Write episodes (values by name under steps/) as TFDS does: features.json, dataset_info.json, one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {key: feature(value, "zlib" if key == zipped else "none") for key, value in episodes[0].items()}
    steps = {"steps": {"sequence": {"feature": nested(described), "length": "-1"}}}
    extra = {"episode_metadata": nested({"file_path": {"text": {}}})}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {**steps, **extra}}}))
    if told is not None:
        info = {"name": "made", "splits": [{"name": "train", "shardLengths": [str(told)]}]}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    examples = []
    for episode in episodes:
        example: dict[str, Value] = {"episode_metadata/file_path": [b"/raw/one"]}
        for key, value in episode.items():
            stored: Value = value if isinstance(value, list) else flattened(value, key == zipped)
            example[f"steps/{key}"] = stored
        examples.append(encode_example(example))
    write_records(folder / "made-train.tfrecord-00000-of-00001", examples)
    return folder


def flattened(value: NDArray[Any], packed: bool) -> Value:
    if packed:
        return [zlib.compress(row.tobytes()) for row in value]
    return value.astype(np.float32 if value.dtype.kind == "f" else np.int64).reshape(-1)


def rt1_episode(steps: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(steps)
    pose = np.concatenate([rng.uniform(0.2, 0.6, (steps, 3)), Rotation.random(steps, rng=0).as_quat()], 1)
    return {
        "observation/image": [jpeg(i) for i in range(steps)],
        "observation/natural_language_instruction": [b"pick apple"] * steps,
        "observation/base_pose_tool_reached": pose.astype(np.float32),
        "observation/gripper_closed": rng.uniform(0, 1, (steps, 1)).astype(np.float32),
        "action/world_vector": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "action/rotation_delta": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "action/gripper_closedness_action": rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        "action/terminate_episode": np.tile(np.array([0, 1, 0], np.int32), (steps, 1)),
        "is_last": np.arange(steps) == steps - 1,
    }


def droid_episode(steps: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(steps)
    parts = {name: rng.uniform(-0.9, 0.9, (steps, width)) for name, width in
             (("cartesian_position", 6), ("cartesian_velocity", 6), ("joint_position", 7), ("joint_velocity", 7),
              ("gripper_position", 1), ("gripper_velocity", 1))}  # fmt: skip
    parts = {name: values.astype(np.float32).astype(np.float64) for name, values in parts.items()}
    return {
        **{f"action_dict/{name}": values for name, values in parts.items()},
        "action": np.concatenate([parts["cartesian_velocity"], parts["gripper_velocity"]], 1),
        "observation/cartesian_position": parts["cartesian_position"] / 2,
        "observation/joint_position": parts["joint_position"] / 2,
        "observation/gripper_position": np.abs(parts["gripper_position"]),
        "observation/exterior_image_1_left": [jpeg(i) for i in range(steps)],
        "language_instruction": [b"put it away"] * steps,
        "language_instruction_2": [b""] * steps,
    }


def read_first(kind: str, folder: Path, options: Options = Options()) -> Any:  # noqa: B008
    source: Source = open_source(kind, folder, options)
    return source.read(source.names()[0])


def test_rt1_action_is_logged_numbers_side_by_side_and_quaternions_are_xyzw(tmp_path: Path) -> None:
    made = rt1_episode()
    episode = read_first("rlds-rt1", write_rlds(tmp_path, [made]))
    parts = ("world_vector", "rotation_delta", "gripper_closedness_action")
    assert_same_bits(episode.columns["action"], np.concatenate([made[f"action/{name}"] for name in parts], 1))
    assert_same_bits(episode.columns["observation.gripper_position"], made["observation/gripper_closed"][:, 0])
    pose, cartesian = made["observation/base_pose_tool_reached"], episode.columns["observation.cartesian_position"]
    turned = Rotation.from_euler("xyz", cartesian[:, 3:]).inv() * Rotation.from_quat(pose[:, 3:])
    assert turned.magnitude().max() < 1e-6
    assert np.array_equal(cartesian[:, :3], pose[:, :3])
    assert (episode.task, episode.rate_hz) == ("pick apple", 3.0)
    assert list(episode.views["image"].files) == made["observation/image"]
    assert_same_bits(episode.columns["is_last"], made["is_last"])
    assert_same_bits(episode.columns["action.terminate_episode"], made["action/terminate_episode"])
    assert episode.info["metadata"] == {"file_path": "/raw/one"}


def test_droid_action_is_recognised_by_its_values_and_another_can_be_chosen(tmp_path: Path) -> None:
    made = droid_episode()
    folder = write_rlds(tmp_path, [made], zipped="action_dict/joint_velocity")
    episode = read_first("rlds-droid", folder)
    assert episode.info["action_mode"] == "cartesian_velocity"
    assert_same_bits(episode.columns["action"], made["action"])
    assert_same_bits(episode.columns["log.action_joint_velocity"], made["action_dict/joint_velocity"])
    assert_same_bits(episode.columns["observation.joint_position"], made["observation/joint_position"])
    chosen = read_first("rlds-droid", folder, Options(action="joint_velocity"))
    assert chosen.columns["action"].shape == (5, 8)
    assert np.array_equal(chosen.columns["action"][:, :7], made["action_dict/joint_velocity"])
    assert chosen.info["action_mode"] == "joint_velocity"
    assert_same_bits(chosen.columns["source.action"], made["action"])
    with pytest.raises(UnknownNameError, match="Did you mean 'joint_velocity'"):
        read_first("rlds-droid", folder, Options(action="joint_velocities"))


def test_droid_action_of_six_and_one_that_is_nothing_known_is_called_unknown(tmp_path: Path) -> None:
    made = droid_episode()
    made["action"] = np.concatenate(
        [made["action_dict/joint_velocity"][:, :6], made["action_dict/gripper_position"]], 1
    )
    assert read_first("rlds-droid", write_rlds(tmp_path, [made])).info["action_mode"] == "unknown"


def test_any_set_keeps_its_features_under_their_names(tmp_path: Path) -> None:
    made = droid_episode()
    episode = read_first("rlds", write_rlds(tmp_path, [made]))
    assert_same_bits(episode.columns["source.observation.joint_position"], made["observation/joint_position"])
    assert "observation.joint_position" not in episode.columns  # whose meaning nobody stated
    assert (episode.info["action_mode"], episode.rate_hz, episode.task) == ("unknown", None, "put it away")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observation/base_pose_tool_reached", lambda v: v * np.float32([1e3] * 3 + [1] * 4), "must be metres .*got"),
        (
            "observation/base_pose_tool_reached",
            lambda v: v * np.float32([1] * 3 + [2] * 4),
            "must be a unit quaternion",
        ),
        ("observation/gripper_closed", lambda v: v * 255, "must be closedness"),
        ("action/rotation_delta", lambda v: v * 57.3 + 10, "must be axis-angle, radians"),
    ],
)
def test_numbers_in_another_unit_are_refused(key: str, change: Any, message: str, tmp_path: Path) -> None:
    made = rt1_episode()
    made[key] = change(made[key]).astype(made[key].dtype)
    with pytest.raises(DataError, match=f"record 0 at byte 0: .*{message}.*Leave this episode out"):
        read_first("rlds-rt1", write_rlds(tmp_path, [made]))


def test_set_of_another_robot_is_refused_at_opening(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path, [rt1_episode()])
    with pytest.raises(DataError, match="'rlds-bridge' needs the feature 'steps/observation/state', got .*kind rlds"):
        open_source("rlds-bridge", folder, Options())


def test_missing_records_are_told_and_the_others_stay_readable(tmp_path: Path) -> None:
    source = open_source("rlds-rt1", write_rlds(tmp_path, [rt1_episode(), rt1_episode(3)], told=3), Options())
    assert len(source.names()) == 3
    assert len(source.read(source.names()[1]).columns["action"]) == 3
    with pytest.raises(DataError, match=r"record 2 must be there, since dataset_info.json counts 3, got none"):
        source.read(source.names()[2])


@pytest.mark.parametrize(("place", "told"), [(-40, "checksum of its"), (5, "checksum of its length")])
def test_flipped_bit_is_told_with_file_record_and_offset(place: int, told: str, tmp_path: Path) -> None:
    folder = write_rlds(tmp_path, [rt1_episode(3), rt1_episode(4)])
    path = folder / "made-train.tfrecord-00000-of-00001"
    offsets, _ = record_offsets(path)
    content = bytearray(path.read_bytes())
    content[place if place < 0 else offsets[1] + place] ^= 4
    path.write_bytes(content)
    source = open_source("rlds-rt1", folder, Options())
    assert len(source.read(source.names()[0]).columns["action"]) == 3
    with pytest.raises(
        DataError, match=rf"00000-of-00001: record 1 at byte {offsets[1]}.*{told}.* must be .*, got .*fetch"
    ):
        source.read(source.names()[1])


def test_blank_view_is_left_out_where_it_always_is_and_told_where_it_is_not(tmp_path: Path) -> None:
    black = io.BytesIO()
    Image.new("RGB", (6, 8)).save(black, "JPEG")
    blank = [black.getvalue()] * 4
    made = [{**rt1_episode(), "observation/never": blank, "observation/once": blank} for _ in range(2)]
    made[1]["observation/once"] = [jpeg(i) for i in range(4)]
    source = open_source("rlds-rt1", write_rlds(tmp_path, made), Options())
    first, second = (source.read(name) for name in source.names())
    assert set(first.views) == set(second.views) == {"image", "once"}
    assert first.info["views_left_out"] == {"never": "blank"}
    assert first.info["blank_views"] == ["once"]
    assert "blank_views" not in second.info


def test_pictures_of_another_size_than_stated_are_refused(tmp_path: Path) -> None:
    made = rt1_episode()
    made["observation/image"][2] = jpeg(2, (16, 6))
    with pytest.raises(DataError, match="must be 8x6 px at all steps, got 16x6 at step 2"):
        read_first("rlds-rt1", write_rlds(tmp_path, [made]))
