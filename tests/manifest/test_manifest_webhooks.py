"""`spec.analysis.webhooks`: what may be written there, and what it becomes."""

import pytest
from manifest_texts import changed, loaded, problems

from deployctl.core.plan import Hook, HookType, Version
from deployctl.manifest.manifest import plan, webhooks


def with_hooks(written):
    return changed("    alpha: 0.01\n", f"    alpha: 0.01\n    webhooks:\n    {written}\n")


LINE = 33
"""Of the first webhook in `with_hooks`."""

APPROVAL = "- {name: approval, type: confirm-promotion, url: https://tickets.example/approve}"


def test_a_webhook_has_its_defaults_and_is_part_of_the_plan():
    manifest = loaded(with_hooks(APPROVAL))
    (hook,) = manifest.webhooks
    assert (hook.hook, hook.url) == (
        Hook("approval", HookType.CONFIRM_PROMOTION),
        "https://tickets.example/approve",
    )
    assert (hook.timeout, hook.retries, hook.interval, hook.metadata) == (10.0, 2, 10.0, {})
    assert plan(manifest, Version("1", "b"), Version("2", "c")).hooks == (hook.hook,)


def test_files_with_secrets_stand_beside_the_manifest_and_only_their_names_are_kept():
    written = (
        "- {name: chat, type: event, urlFile: chat-url.txt, tokenFile: /run/token, metadata: {channel: ops}}"
    )
    manifest = loaded(with_hooks(written))
    (kept,) = webhooks(manifest)
    assert (kept["url"], kept["metadata"]) == (None, {"channel": "ops"})
    assert (kept["urlFile"], kept["tokenFile"]) == ("/models-of-test/chat-url.txt", "/run/token")


@pytest.mark.parametrize("kind", HookType)
def test_every_type_may_be_written(kind):
    manifest = loaded(with_hooks(APPROVAL.replace("confirm-promotion", kind.value)))
    assert manifest.webhooks[0].hook.type is kind


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: confirm-promotion, ", "", "'type'"),
        ("confirm-promotion", "confirm-promtion", "confirm-promtion"),
        ("name: approval", "name: An approval", "name: 'An approval' is not a name"),
        (", url: https://tickets.example/approve", "", "exactly one of url and urlFile"),
        ("https:", "ftp:", "is no URL such as https://example.com/hook"),
        ("https://tickets.example/approve", "tickets.example/approve", "is no URL such as"),
        ("https://", "https://kim:secret@", "a user or password does not belong into a manifest"),
        ("tickets.example", "tickets.example:99999", "is no URL"),
        ("/approve", "/approveé", "percent-encode what is not ASCII"),
        ("}", ", timeout: 0s}", "timeout: must be longer than zero"),
        ("}", ", retries: 11}", "retries"),
        ("}", ", metadata: {tries: 3}}", "must be text"),
        ("}", ", header: x}", "unknown key 'header'"),
        ("}", ", urlFile: x}", "exactly one of url and urlFile"),
    ],
)
def test_what_cannot_be_a_webhook_is_said_with_its_place(old, new, message):
    text = with_hooks(APPROVAL.replace(old, new))
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(f"{LINE}:")
    assert message in found[0]
    assert "secret" not in found[0]


def test_two_webhooks_have_two_names():
    (problem,) = problems(with_hooks(f"{APPROVAL}\n    {APPROVAL}"))
    assert "'approval' is listed twice" in problem
