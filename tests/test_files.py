import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_edt import files
from recbole_edt.errors import ConfigError, DataError, EDTError, LLMError
from recbole_edt.files import (
    alone_in,
    is_current,
    read_json,
    sha256_of,
    write_json,
    write_manifest,
    write_safely,
    write_text,
)


@pytest.mark.parametrize("error", [ConfigError, DataError, LLMError])
def test_one_except_clause_catches_every_error_of_the_package(error):
    assert issubclass(error, EDTError)


class TestWriteSafely:
    def test_the_file_appears_only_when_the_block_is_done(self, tmp_path):
        path = tmp_path / "new" / "folder" / "a.txt"
        with write_safely(path) as temporary:
            temporary.write_text("whole")
            assert temporary.parent == path.parent
            assert not path.exists()
        assert path.read_text() == "whole"
        assert os.listdir(path.parent) == ["a.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_failure_keeps_the_old_file_and_leaves_no_temporary(self, tmp_path, error):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(error), write_safely(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_full_disk_is_a_data_error_that_names_the_file(self, tmp_path):
        path = tmp_path / "a.txt"
        with pytest.raises(DataError, match="No space left on device") as caught, write_safely(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")
        assert str(path) in str(caught.value)
        assert os.listdir(tmp_path) == []

    def test_a_folder_in_the_place_of_the_file_is_a_data_error(self, tmp_path):
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(DataError, match="a.txt: cannot be written"):
            write_text(tmp_path / "a.txt", "text")

    @pytest.mark.parametrize("path", [".", "/"])
    def test_a_path_without_a_name_is_a_data_error(self, path):
        with pytest.raises(DataError, match="is a folder; name a file"):
            write_text(path, "text")

    def test_a_file_in_the_place_of_the_folder_is_a_data_error(self, tmp_path):
        (tmp_path / "a").write_text("a file")
        with pytest.raises(DataError, match="cannot be written"):
            write_text(tmp_path / "a" / "b.txt", "text")

    def test_numpy_writes_to_the_very_name_it_is_given(self, tmp_path):
        with write_safely(tmp_path / "a.npy") as temporary:
            np.save(temporary, np.arange(3))
        assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
        assert os.listdir(tmp_path) == ["a.npy"]


class TestAloneIn:
    def test_a_second_one_is_refused_until_the_first_is_done_however_it_ends(self, tmp_path):
        with pytest.raises(OSError, match="of the training itself"), alone_in(tmp_path / "run"):
            with pytest.raises(DataError, match="run: another process is training"), alone_in(tmp_path / "run"):
                pass
            raise OSError("of the training itself")
        with alone_in(tmp_path / "run"):
            assert os.listdir(tmp_path / "run") == [".lock"]

    def test_a_file_in_the_place_of_the_folder_or_the_lock_is_a_data_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "run" / ".lock").mkdir(parents=True)
        for folder in (tmp_path / "file" / "run", tmp_path / "run"):
            with pytest.raises(DataError, match="run: cannot be written.*; free space or"), alone_in(folder):
                pass


class TestJson:
    def test_is_sorted_indented_and_ends_with_a_line_end(self, tmp_path):
        write_json(tmp_path / "a.json", {"b": np.int64(2), "a": np.array([1.5]), "c": Path("x/y")})
        assert (tmp_path / "a.json").read_bytes() == b'{\n "a": [\n  1.5\n ],\n "b": 2,\n "c": "x/y"\n}\n'

    def test_reads_back_what_was_written(self, tmp_path):
        write_json(tmp_path / "a.json", {"title": "Crème\u2028 \U0001f355"})
        assert read_json(tmp_path / "a.json") == {"title": "Crème\u2028 \U0001f355"}

    def test_a_missing_file_is_a_data_error(self, tmp_path):
        with pytest.raises(DataError, match="nowhere.json: no such file"):
            read_json(tmp_path / "nowhere.json")

    def test_a_folder_is_a_data_error(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_json(tmp_path)

    def test_a_fault_is_found_by_line_and_column(self, tmp_path):
        (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
        with pytest.raises(DataError, match=r"a.json, line 2, column 7: not valid JSON"):
            read_json(tmp_path / "a.json")

    def test_a_number_of_thousands_of_digits_is_a_data_error(self, tmp_path):
        (tmp_path / "a.json").write_text("1" * 5000)
        with pytest.raises(DataError, match="a.json: not valid JSON"):
            read_json(tmp_path / "a.json")

    def test_bytes_that_are_no_text_are_a_data_error(self, tmp_path):
        (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(tmp_path / "a.json")


class TestSha256:
    def test_of_a_file_is_that_of_its_contents_not_of_its_name(self, tmp_path):
        for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
            (tmp_path / name).write_text(content)
        a, b, c = (sha256_of(tmp_path / name) for name in "abc")
        assert a == b != c

    def test_reads_large_files_to_the_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_BLOCK", 4)
        (tmp_path / "a").write_bytes(b"12345678x")
        (tmp_path / "b").write_bytes(b"12345678y")
        assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")

    def test_of_a_missing_file_is_a_data_error(self, tmp_path):
        with pytest.raises(DataError, match="no such file"):
            sha256_of(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("ab", "c"), ("a", "bc")),
            (("a",), ("a", "")),
            (("a",), (b"a",)),
            ((1,), ("1",)),
            ((np.arange(4),), (np.arange(4).reshape(2, 2),)),
            ((np.zeros(2, np.float32),), (np.zeros(1, np.float64),)),
            (({"a": 1},), ({"a": 2},)),
        ],
    )
    def test_differs_where_the_parts_differ(self, one, other):
        assert sha256_of(*one) != sha256_of(*other)

    def test_does_not_depend_on_the_order_of_keys_or_the_layout_in_memory(self):
        assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
        table = np.arange(6).reshape(2, 3)
        assert sha256_of(table[:, ::2]) == sha256_of(table[:, ::2].copy())
        assert sha256_of(np.zeros((0, 3))) == sha256_of(np.zeros((0, 3)))

    def test_arrays_of_text_count_by_their_values(self):
        assert sha256_of(np.array(["a", "bcd"])) == sha256_of(np.array(["a", "bcd"], dtype=object))

    def test_is_built_from_the_kind_and_the_content_of_each_part(self):
        def sha256(content):
            return hashlib.sha256(content).digest()

        text = sha256(b"json\0" + sha256(b'"t"'))
        setting = sha256(b"json\0" + sha256(b'{"a":[1,2.5,null]}'))
        array = sha256(b"array <i8 (2,)\0" + sha256(b"\x07" + 7 * b"\0" + b"\x01" + 7 * b"\0"))
        parts = "t", {"a": [1, 2.5, None]}, np.array([7, 1], dtype="<i8")
        assert sha256_of(*parts) == sha256(text + setting + array).hex()

    def test_refuses_what_has_no_canonical_form(self):
        @dataclass
        class Setting:
            k: int = 3

        with pytest.raises(TypeError, match="Setting"):
            sha256_of(Setting())

    @given(st.recursive(st.none() | st.integers() | st.text(), lambda kids: st.lists(kids), max_leaves=5))
    def test_depends_on_the_value_alone(self, value):
        assert sha256_of(value) == sha256_of(json.loads(json.dumps(value)))


class TestManifest:
    @pytest.fixture
    def stage(self, tmp_path):
        outputs = [tmp_path / "out" / "a.txt", tmp_path / "out" / "b.txt"]
        for output in outputs:
            write_text(output, output.name)
        manifest = tmp_path / "out" / "stage.json"
        write_manifest(manifest, "augment", "abc", {"k": 3}, {"kept": np.int64(7)}, outputs)
        return manifest, outputs

    def test_a_finished_stage_is_current(self, stage):
        manifest, outputs = stage
        assert is_current(manifest, "abc", outputs)

    def test_says_what_was_done(self, stage):
        content = read_json(stage[0])
        assert (content["stage"], content["config"], content["counts"]) == ("augment", {"k": 3}, {"kept": 7})
        assert content["versions"]["numpy"] == np.__version__
        assert content["outputs"]["a.txt"] == sha256_of(stage[1][0])

    def test_other_inputs_make_it_stale(self, stage):
        assert not is_current(stage[0], "abd", stage[1])

    def test_a_changed_output_makes_it_stale(self, stage):
        stage[1][1].write_text("edited")
        assert not is_current(stage[0], "abc", stage[1])

    def test_a_deleted_output_makes_it_stale(self, stage):
        stage[1][1].unlink()
        assert not is_current(stage[0], "abc", stage[1])

    def test_an_output_it_does_not_know_makes_it_stale(self, stage, tmp_path):
        write_text(tmp_path / "out" / "c.txt", "c")
        assert not is_current(stage[0], "abc", [*stage[1], tmp_path / "out" / "c.txt"])

    @pytest.mark.parametrize(
        "content", [None, "", "[]", '"abc"', "null", "{}", '{"inputs_hash": "abc", "outputs": []}']
    )
    def test_a_missing_or_damaged_manifest_is_stale(self, stage, content):
        stage[0].unlink()
        if content is not None:
            stage[0].write_text(content)
        assert not is_current(stage[0], "abc", stage[1])

    def test_a_moved_folder_stays_current(self, stage, tmp_path):
        moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
        assert is_current(moved / "stage.json", "abc", [moved / "a.txt", moved / "b.txt"])

    def test_libraries_that_are_not_installed_are_left_out(self, monkeypatch):
        monkeypatch.setattr(files, "LIBRARIES", ("numpy", "no-such-library-here"))
        assert set(files.library_versions()) == {"python", "numpy"}
