import importlib.util

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from toy import LetterEmbedder, dataset

from recbole_edt.errors import DataError
from recbole_edt.text import embedders
from recbole_edt.text import vectors as vectors_module
from recbole_edt.text.embedders import WordLlama, embed_items
from recbole_edt.text.item_text import item_text
from recbole_edt.text.vectors import EmbeddingTable, import_vectors, read_itememb


def some_table(tokens=("x", "y", "z"), rows=(0, 1, 0), vectors=((1, 2), (3, 4))):
    return EmbeddingTable(
        np.array(tokens, object), np.array(rows, np.int32), np.array(vectors, np.float32), {"kind": "item"}
    )


class TestItemText:
    def test_parts_stand_in_the_order_title_brand_category_description(self):
        fields = pd.DataFrame(
            {"description": ["Good"], "brand": ["Acme"], "title": ["Mug"], "category": ["Cups"]}
        )
        assert item_text(fields) == ["Mug. Acme. Cups. Good"]

    def test_missing_parts_are_left_out(self):
        fields = pd.DataFrame({"title": ["Mug", "", ""], "brand": ["", "Acme", ""]})
        assert item_text(fields) == ["Mug", "Acme", ""]

    def test_of_alternative_columns_the_first_that_says_something_counts(self):
        fields = pd.DataFrame({"name": ["a", "b"], "title": ["A", ""], "class": ["c", "d"]})
        assert item_text(fields) == ["A. c", "b. d"]

    def test_other_columns_say_nothing(self):
        assert item_text(pd.DataFrame({"price": ["9"], "url": ["x"]})) == [""]

    def test_entities_are_resolved_and_spaces_evened_out(self):
        assert item_text(pd.DataFrame({"title": [" Tea&amp;Co  6&quot; \n pot "]})) == ['Tea&Co 6" pot']

    def test_no_items_have_no_texts(self):
        assert item_text(pd.DataFrame({"title": []})) == []


class TestEmbedItems:
    def test_each_item_gets_the_vector_of_its_text_and_equal_texts_are_embedded_once(self, tmp_path):
        data = dataset(["f1 f2 k1 k2"], titles={"f1": "ab", "f2": "dd", "k1": "ab", "k2": ""})
        embedder = LetterEmbedder()
        table = embed_items(data, embedder, tmp_path / "t.safetensors")
        assert sorted(embedder.asked) == ["", "ab", "dd"]
        assert table.lookup(data.items).tolist() == [[1, 1, 0, 0], [0, 0, 0, 2], [1, 1, 0, 0], [0, 0, 0, 0]]

    def test_the_coverage_is_counted(self, tmp_path):
        data = dataset(["f1 f2 k1 k2"], titles={"f1": "ab", "f2": "zz", "k1": "ab", "k2": ""})
        meta = embed_items(data, LetterEmbedder(), tmp_path / "t.safetensors").meta
        assert (meta["n"], meta["n_distinct_texts"], meta["n_without_text"]) == (4, 3, 2)  # "zz" got no vector
        assert (meta["kind"], meta["model"], meta["dim"]) == ("item", "letters", 4)


class TestEmbeddingTable:
    def test_lookup_follows_the_order_asked_and_gives_zeros_for_the_unknown(self):
        vectors = some_table().lookup(["z", "nobody", "y"])
        assert vectors.tolist() == [[1, 2], [0, 0], [3, 4]]
        assert vectors.dtype == np.float32

    def test_has_and_find_tell_known_from_unknown(self):
        assert some_table().has(["z", "nobody"]).tolist() == [True, False]
        assert some_table().find(np.array(["z", "nobody"], object)).tolist() == [2, -1]

    def test_a_saved_table_comes_back(self, tmp_path):
        table = some_table(tokens=("x", "été ☕", "a b"))
        table.save(tmp_path / "t.safetensors")
        loaded = EmbeddingTable.load(tmp_path / "t.safetensors")
        assert loaded.tokens.tolist() == table.tokens.tolist()
        assert loaded.rows.tolist() == [0, 1, 0]
        assert loaded.vectors.tolist() == [[1, 2], [3, 4]]
        assert loaded.meta == {"kind": "item"}
        assert len(loaded) == 3 and loaded.dim == 2

    def test_whoever_may_read_other_files_may_read_a_saved_table(self, tmp_path):
        some_table().save(tmp_path / "t.safetensors")
        (tmp_path / "other").touch()
        assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_a_table_that_may_not_be_read_is_not_called_damaged(self, tmp_path, monkeypatch):
        def denied(path):
            raise PermissionError(13, "Permission denied")

        some_table().save(tmp_path / "t.safetensors")
        monkeypatch.setattr(vectors_module, "_read_header", denied)
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); give yourself the right to"):
            EmbeddingTable.load(tmp_path / "t.safetensors")

    def test_vectors_stay_on_disk_until_they_are_asked_for(self, tmp_path):
        some_table().save(tmp_path / "t.safetensors")
        loaded = EmbeddingTable.load(tmp_path / "t.safetensors")
        assert isinstance(loaded.vectors, np.memmap)
        assert not loaded.vectors.flags.writeable

    def test_an_empty_table_comes_back(self, tmp_path):
        some_table((), (), np.zeros((0, 5))).save(tmp_path / "t.safetensors")
        assert EmbeddingTable.load(tmp_path / "t.safetensors").lookup(["x"]).shape == (1, 5)

    def test_other_tools_can_read_the_file(self, tmp_path):
        some_table().save(tmp_path / "t.safetensors")
        assert load_file(tmp_path / "t.safetensors")["vectors"].tolist() == [[1, 2], [3, 4]]

    def test_a_token_twice_is_refused_by_name(self, tmp_path):
        with pytest.raises(DataError, match="'x' is there twice"):
            some_table(tokens=("x", "y", "x")).save(tmp_path / "t.safetensors")

    def test_a_vector_that_is_not_finite_is_refused_and_the_old_file_stays(self, tmp_path):
        path = tmp_path / "t.safetensors"
        some_table().save(path)
        with pytest.raises(DataError, match="not finite.*'y'"):
            some_table(vectors=((1, 2), (np.nan, 4))).save(path)
        assert EmbeddingTable.load(path).vectors.tolist() == [[1, 2], [3, 4]]


class TestDamagedTables:
    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.safetensors: no such file"):
            EmbeddingTable.load(tmp_path / "gone.safetensors")

    def test_a_table_cut_short_anywhere_is_refused(self, tmp_path):
        path = tmp_path / "t.safetensors"
        some_table().save(path)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match="not a whole embedding table"):
                EmbeddingTable.load(path)

    @settings(max_examples=200)
    @given(content=st.binary(max_size=80))
    def test_any_other_bytes_are_refused(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("damaged") / "t.safetensors"
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a whole embedding table"):
            EmbeddingTable.load(path)

    @settings(max_examples=300)
    @given(place=st.integers(0, 600), byte=st.integers(0, 255))
    def test_a_changed_byte_gives_a_table_or_a_clear_error(self, tmp_path_factory, place, byte):
        path = tmp_path_factory.mktemp("changed") / "t.safetensors"
        some_table().save(path)
        content = bytearray(path.read_bytes())
        content[place % len(content)] = byte
        path.write_bytes(bytes(content))
        try:
            EmbeddingTable.load(path).lookup(["x", "y"])
        except DataError as error:
            assert "t.safetensors" in str(error)

    def test_a_damaged_token_that_is_now_another_is_refused(self, tmp_path):
        path = tmp_path / "t.safetensors"
        some_table().save(path)
        path.write_bytes(path.read_bytes().replace(b"xyz", b"yyz"))
        with pytest.raises(DataError, match="not a whole embedding table .token 'y' is there twice"):
            EmbeddingTable.load(path)

    def test_another_safetensors_file_is_refused(self, tmp_path):
        save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(DataError, match="not a whole embedding table"):
            EmbeddingTable.load(tmp_path / "model.safetensors")

    @pytest.mark.parametrize("ends", [[1, 2, 9], [1, 2, 2], [2, 1, 3]])
    def test_token_bounds_that_do_not_fit_are_refused(self, tmp_path, monkeypatch, ends):
        path = tmp_path / "t.safetensors"
        monkeypatch.setattr(np, "cumsum", lambda lengths, dtype: np.array(ends, dtype))
        some_table().save(path)
        with pytest.raises(DataError, match="token offsets are wrong"):
            EmbeddingTable.load(path)

    @pytest.mark.parametrize("rows", [(0, 1, 2), (0, -1, 0)])
    def test_rows_outside_the_vectors_are_refused(self, tmp_path, rows):
        path = tmp_path / "t.safetensors"
        some_table(rows=rows).save(path)
        with pytest.raises(DataError, match="rows point outside"):
            EmbeddingTable.load(path)


needs_wordllama = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="wordllama's weights are not installed"
)


class TestWordLlama:
    @needs_wordllama
    def test_vectors_do_not_depend_on_the_company(self):
        embedder = WordLlama()
        texts = ["green tea", "cast iron skillet", "a much longer text about a kettle for tea " * 40]
        together = embedder.embed(texts)
        assert together.shape == (3, 256) and together.dtype == np.float32
        assert all(
            (embedder.embed([text])[0] == vector).all() for text, vector in zip(texts, together, strict=True)
        )

    @needs_wordllama
    def test_a_text_is_the_mean_of_its_tokens(self):
        embedder = WordLlama()
        once, twice = embedder.embed(["tea", "tea tea"])
        assert once == pytest.approx(twice, abs=1e-6)
        tea_kettle, tea, kettle = embedder.embed(["tea kettle", "tea", "kettle"])
        n_kettle = len(embedder._tokenizer.encode("kettle", add_special_tokens=False).ids)
        assert tea_kettle == pytest.approx((tea + n_kettle * kettle) / (1 + n_kettle), abs=1e-6)

    @needs_wordllama
    def test_an_empty_text_is_a_zero_vector(self):
        assert not WordLlama().embed(["", "x"])[0].any()
        assert WordLlama().embed([]).shape == (0, 256)

    @needs_wordllama
    def test_like_texts_are_alike(self):
        tea, chai, drill = embeddings_of("green tea bags", "black tea leaves", "cordless power drill")
        assert tea @ chai > 2 * (tea @ drill)

    def test_without_the_wheel_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match="pip install --no-deps"):
            WordLlama()

    def test_damaged_weights_are_a_clear_error(self, monkeypatch, tmp_path):
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "l2_supercat_256.safetensors").write_bytes(b"damaged")
        monkeypatch.setattr(embedders, "_package_folder", lambda name: tmp_path)
        with pytest.raises(DataError, match="could not be read.*pip install"):
            WordLlama()


def embeddings_of(*texts):
    vectors = WordLlama().embed(texts)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestReadItememb:
    def read(self, tmp_path, text):
        (tmp_path / "x.itememb").write_text(text, encoding="utf-8")
        return read_itememb(tmp_path / "x.itememb")

    def test_vectors_are_read_by_token(self, tmp_path):
        table = self.read(tmp_path, "iid:token\titem_emb:float_seq\na\t1 2.5 -3e1\nb\t0 0 1\n")
        assert table.lookup(["b", "a"]).tolist() == [[0, 0, 1], [1, 2.5, -30]]

    @pytest.mark.parametrize(
        "row, message",
        [
            ("b\t0 0", "line 3, column 'v'.*not 3 numbers"),
            ("b\t0 x 1", "line 3, column 'v': 3 values, not 3 numbers.*could not convert"),
            ("b\t7", "line 3, column 'v'.*not 3 numbers"),
            ("b\t", "line 3, column 'v'.*not 3 numbers"),
            ("b\t0 nan 1", "not finite.*'b'"),
            ("a\t0 0 1", "'a' is there twice"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, row, message):
        with pytest.raises(DataError, match=message):
            self.read(tmp_path, f"i:token\tv:float_seq\na\t1 2 3\n{row}\n")

    def test_a_first_row_without_numbers_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="line 2, column 'v': no numbers"):
            self.read(tmp_path, "i:token\tv:float_seq\na\t\nb\t\n")

    def test_other_columns_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="one column of type float_seq.*title:token_seq"):
            self.read(tmp_path, "i:token\ttitle:token_seq\na\tb\n")


class TestImportVectors:
    def test_an_item_whose_vector_is_zero_counts_as_one_without(self, tmp_path):
        (tmp_path / "x.itememb").write_text("i:token\tv:float_seq\na\t0 0\nb\t1 2\n")
        items = np.array(["a", "b", "c"], object)
        table = import_vectors(tmp_path / "x.itememb", items, tmp_path / "out.safetensors")
        assert table.meta["n_without_text"] == 2 and table.meta["n_distinct_texts"] == 1

    def test_the_users_own_table_is_checked_and_never_to_be_deleted(self, tmp_path):
        source, out, items = tmp_path / "own.safetensors", tmp_path / "out.safetensors", np.array(["x", "y"], object)
        with pytest.raises(DataError, match=r"own\.safetensors: no such file; check embed.vectors"):
            import_vectors(source, items, out)
        save_file({"a": np.zeros((2, 3), np.float32)}, source)
        with pytest.raises(DataError, match=r"own\.safetensors: not a whole embedding table.*own_vectors.py makes one"):
            import_vectors(source, items, out)
        some_table().save(source)
        content = source.read_bytes()
        four, nan = np.array([[4], [np.nan]], "<f4")
        source.write_bytes(content.replace(four.tobytes(), nan.tobytes()))
        with pytest.raises(DataError, match=r"own\.safetensors: 1 vectors are not finite \(first: token 'y'\)"):
            import_vectors(source, items, out)
        assert not out.exists()

    @pytest.mark.parametrize("meta", ["[1]", "null", "[" * 200_000])
    def test_a_header_that_is_none_is_refused(self, tmp_path, meta):
        some_table().save(tmp_path / "t.safetensors")
        arrays = load_file(tmp_path / "t.safetensors")
        save_file(arrays, tmp_path / "t.safetensors", {"embedding_table": meta})
        with pytest.raises(DataError, match="not a whole embedding table"):
            EmbeddingTable.load(tmp_path / "t.safetensors")
