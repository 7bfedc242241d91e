"""Checkpoints go to the Hub in one commit or not at all, and come back as they were."""

import json
import logging
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import ROUTES
from transformers import AutoModel, AutoProcessor, pipeline

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    push_checkpoint,
    save_checkpoint,
    write_model_card,
)

COMMIT = "POST /api/{kind}/{repo}/commit/{rev}"
UPLOAD = "PUT /lfs/{oid}"
HISTORY = [["a", "b"], ["c"]]


def make(folder: Path, seed: int = 0) -> Path:
    """A checkpoint with everything that a training leaves in its folder."""
    torch.manual_seed(seed)
    processor = ImplicitRecProcessor.fit({"item_id": [*"abcabdab"]})
    sizes = {"vocab_size": processor.vocab_size, "vocabulary_fingerprint": processor.fingerprint}
    model = ImplicitRecForScoring(ImplicitRecConfig(hidden_size=8, num_hidden_layers=1, **sizes))
    save_checkpoint(folder, model=model, processor=processor)
    write_model_card(folder, model=model, processor=processor, results={})
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "checkpoint-5").mkdir(exist_ok=True)
    for name in ("training.json", "results_test.json", "plots/loss.svg"):
        (folder / name).write_text("{}")
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-5/config.json", "log.csv"):
        (folder / name).write_text("stays here")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "shop")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("modeling_implicitrec.sharing.WAIT", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def scores(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([[1, 2, 3]])).logits


def commits(hub, repo: str) -> int:
    return len(hub.repos["models", repo].commits)


def test_a_checkpoint_goes_up_in_one_commit_and_comes_back_by_name(hub, made):
    done = push_checkpoint(made, "alice/shop")
    assert commits(hub, "alice/shop") == 2  # the first one is the repository's own
    files = set(hub.files("alice/shop"))
    assert {"README.md", "config.json", "model.safetensors", "plots/loss.svg"} < files
    assert {"pipeline_implicitrec.py", "training.json", "results_test.json"} < files
    assert not {f for f in files if "checkpoint-5" in f or f.endswith((".bin", ".pt", ".csv"))}
    model = AutoModel.from_pretrained("alice/shop", revision=done.oid)
    processor = AutoProcessor.from_pretrained("alice/shop", revision=done.oid)
    assert torch.equal(scores(model), scores(ImplicitRecForScoring.from_pretrained(made)))
    assert processor(HISTORY)["input_ids"].tolist() == [[1, 2], [3, 0]]
    config = json.loads(hub.read("alice/shop", "config.json"))
    assert not any("--" in classes for classes in config["auto_map"].values())
    assert hub.leaked == []  # the storage never saw the token


def test_model_and_processor_push_themselves(hub, made, tmp_path):
    model = ImplicitRecForScoring.from_pretrained(made)
    processor = ImplicitRecProcessor.from_pretrained(made)
    model.push_to_hub("alice/parts", private=True)
    processor.push_to_hub("alice/parts")
    assert hub.repos["models", "alice/parts"].private
    recommend = pipeline("recommendation", model="alice/parts", device="cpu")
    ours = pipeline("recommendation", model=model, processor=processor, device="cpu")
    assert recommend(HISTORY) == ours(HISTORY)
    with pytest.raises(OSError, match="alice/parts"):
        AutoModel.from_pretrained("alice/parts", token="hf_bob", cache_dir=tmp_path)


def test_branches_tags_and_old_revisions_stay_what_they_were(hub, made, tmp_path):
    first = push_checkpoint(made, "alice/shop")
    api = HfApi()
    api.create_tag("alice/shop", tag="v1")
    other = make(tmp_path / "other", seed=1)
    (other / "modeling_extra_implicitrec.py").write_text("")
    push_checkpoint(other, "alice/shop", revision="next")
    assert "modeling_extra_implicitrec.py" in hub.files("alice/shop", "next")
    push_checkpoint(made, "alice/shop", revision="next")  # what the new one has not goes
    assert "modeling_extra_implicitrec.py" not in hub.files("alice/shop", "next")
    push_checkpoint(other, "alice/shop", message="Second")
    found = {
        rev: scores(AutoModel.from_pretrained("alice/shop", revision=rev)) for rev in ("v1", "main")
    }
    assert torch.equal(found["v1"], scores(ImplicitRecForScoring.from_pretrained(made)))
    assert torch.equal(found["main"], scores(ImplicitRecForScoring.from_pretrained(other)))
    titles = [commit.title for commit in api.list_repo_commits("alice/shop")]
    assert titles == ["Second", "Upload checkpoint", "initial commit"]
    assert api.list_repo_commits("alice/shop", revision="v1")[0].commit_id == first.oid


def test_somebody_else_proposes_and_the_owner_merges(hub, made, tmp_path):
    push_checkpoint(made, "alice/shop")
    other = make(tmp_path / "other", seed=1)
    done = push_checkpoint(other, "alice/shop", create_pr=True, token="hf_bob")
    assert done.pr_url.endswith("/alice/shop/discussions/1")
    assert hub.read("alice/shop", "model.safetensors") == (made / "model.safetensors").read_bytes()
    proposed = AutoModel.from_pretrained("alice/shop", revision="refs/pr/1")
    assert torch.equal(scores(proposed), scores(ImplicitRecForScoring.from_pretrained(other)))
    HfApi().merge_pull_request("alice/shop", 1)
    assert hub.read("alice/shop", "model.safetensors") == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("token", ["hf_reader", "hf_bob", "hf_nobody"])
def test_a_token_without_rights_is_refused_in_plain_words(hub, made, token):
    push_checkpoint(made, "alice/shop", private=True)
    before = commits(hub, "alice/shop")
    for repo in ("alice/shop", "alice/new"):
        with pytest.raises(
            PermissionError, match=f"refuses to write the model '{repo}'.*role `write`"
        ):
            push_checkpoint(made, repo, token=token)
    assert commits(hub, "alice/shop") == before
    assert ("models", "alice/new") not in hub.repos


@pytest.mark.parametrize(
    ("route", "fault"),
    [(UPLOAD, "drop"), (UPLOAD, 503), (COMMIT, "drop"), (COMMIT, 500), (COMMIT, "lose")],
)
def test_what_the_network_breaks_is_tried_again_and_makes_one_commit(hub, made, route, fault):
    hub.fail(route, fault)
    done = push_checkpoint(made, "alice/shop")
    assert hub.faults == []
    assert commits(hub, "alice/shop") == 2
    assert hub.repos["models", "alice/shop"].find("main") == done.oid
    assert hub.read("alice/shop", "model.safetensors") == (made / "model.safetensors").read_bytes()


def test_a_hub_that_stays_away_gets_no_half_checkpoint(hub, made, tmp_path):
    push_checkpoint(made, "alice/shop")
    before = dict(hub.files("alice/shop"))
    other = make(tmp_path / "other", seed=1)
    for route, fault, error in (
        (UPLOAD, "garble", RuntimeError),  # the storage finds another SHA-256
        (COMMIT, 500, HfHubHTTPError),
        (COMMIT, "drop", httpx2.TransportError),
    ):
        hub.fail(route, fault, times=20)
        with pytest.raises(error):
            push_checkpoint(other, "alice/shop")
        hub.faults.clear()
        assert hub.files("alice/shop") == before
    push_checkpoint(other, "alice/shop")
    assert hub.files("alice/shop") != before


def test_a_commit_in_between_is_not_overwritten(hub, made, tmp_path):
    push_checkpoint(made, "alice/shop")
    kept = hub.repos["models", "alice/shop"]
    hub.fail(COMMIT, lambda: kept.add_commit("refs/heads/main", {}, "somebody else"))
    with pytest.raises(RuntimeError, match="got another commit meanwhile"):
        push_checkpoint(make(tmp_path / "other", seed=1), "alice/shop")
    assert hub.files("alice/shop") == {}


def test_a_download_that_breaks_off_or_lies_is_found(hub, made):
    push_checkpoint(made, "alice/shop")
    hub.fail("GET /lfs/{oid}", "drop")
    assert AutoModel.from_pretrained("alice/shop") is not None
    push_checkpoint(made, "alice/lies")
    hub.fail("GET /lfs/{oid}", "corrupt", times=2)
    snapshot_download("alice/lies")
    found = HfApi().verify_repo_checksums("alice/lies")
    assert {m["path"] for m in found.mismatches} == {
        "model.safetensors",
        "item_vocabulary.safetensors",
    }


def test_what_does_not_load_is_not_pushed(hub, made, tmp_path):
    with pytest.raises(ValueError, match="expected a checkpoint with a config.json, got 'nothing'"):
        push_checkpoint(tmp_path / "nothing", "alice/shop")
    broken = shutil.copytree(made, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match="(?i)incomplete|header"):
        push_checkpoint(broken, "alice/shop")
    assert hub.repos == {}


def test_no_token_in_logs_files_or_what_is_pushed(hub, made, caplog, capfd, monkeypatch):
    token = "hf_averysecrettoken"
    monkeypatch.setitem(hub.tokens, token, ("alice", "write"))
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "transformers", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    hub.fail(COMMIT, "lose")
    push_checkpoint(made, "alice/quiet", token=token)
    with pytest.raises(PermissionError) as refused:
        push_checkpoint(made, "bob/quiet", token=token)
    printed = capfd.readouterr()
    assert "try 1 of 3 failed" in caplog.text
    assert token not in caplog.text + printed.out + printed.err + str(refused.value)
    assert not any(
        token.encode() in path.read_bytes() for path in made.rglob("*") if path.is_file()
    )
    assert not any(token.encode() in content for content in hub.blobs.values())


def test_every_route_that_the_client_calls(hub, tmp_path):
    """One call of everything: what the loopback hub can do is what the client asks, no more, no less."""
    api, repo = HfApi(), "alice/all"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 64)
    api.whoami()
    api.create_repo(repo)
    upload = {"repo_id": repo, "folder_path": tmp_path}
    first = api.upload_folder(**upload)
    api.create_branch(repo, branch="next")
    api.create_tag(repo, tag="v1")
    assert [ref.name for ref in api.list_repo_refs(repo).branches] == ["main", "next"]
    (tmp_path / "more.txt").write_text("more")
    api.upload_folder(**upload, create_pr=True, commit_message="More")
    assert [pull.title for pull in api.get_repo_discussions(repo)] == ["More"]
    api.merge_pull_request(repo, 1)
    assert api.file_exists(repo, "more.txt") and not api.file_exists(
        repo, "more.txt", revision="v1"
    )
    assert api.get_paths_info(repo, ["weights.bin"])[0].lfs.size == 64
    api.delete_branch(repo, branch="next")
    api.delete_tag(repo, tag="v1")
    api.update_repo_settings(repo, private=True)
    assert api.model_info(repo).private
    assert api.model_info(repo, revision=first.oid).sha == first.oid
    assert [model.id for model in api.list_models(author="alice")] == [repo]
    assert len(api.list_repo_commits(repo)) == 3
    api.snapshot_download(repo, cache_dir=tmp_path / "cache")
    api.delete_repo(repo)
    unused = set(ROUTES) - {route.replace("HEAD", "GET", 1) for route in hub.used}
    assert unused <= {"GET /api/agent-harnesses"}  # asked once a process, where an agent runs it
    assert set(hub.used) <= {*ROUTES, "HEAD /{kind/}{repo}/resolve/{rev}/{path}"}


def test_ranges_of_a_file(hub, made):
    push_checkpoint(made, "alice/shop")
    url = f"{hub.url}/alice/shop/resolve/main/"
    weights = (made / "model.safetensors").read_bytes()
    for name, content in {"model.safetensors": weights, "training.json": b"{}"}.items():
        get = {"url": url + name, "follow_redirects": True}
        part = httpx2.get(**get, headers={"Range": "bytes=1-"})
        assert (part.status_code, part.content) == (206, content[1:])
        assert httpx2.get(**get, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
