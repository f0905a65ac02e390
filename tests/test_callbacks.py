"""Callbacks: combining hooks keeps order, passes replacements on, and leaves absent hooks absent."""

from jaxrl.callbacks import Callbacks, Episode, combine


def test_combining_nothing_gives_no_hooks():
    assert combine() == Callbacks()
    assert combine(Callbacks(), Callbacks()) == Callbacks()


def test_a_single_hook_is_kept_as_it_is():
    def on_end(*, worker, env_index, episode):
        episode.custom_metrics["length"] = episode.length

    combined = combine(Callbacks(), Callbacks(on_episode_end=on_end))
    assert combined.on_episode_end is on_end
    assert combined.on_episode_step is None


def test_episode_hooks_run_in_order_on_one_episode():
    seen = []

    def hook(name):
        def on_start(*, worker, env_index, episode):
            seen.append((name, env_index))
            episode.user_data[name] = len(seen)

        return Callbacks(on_episode_start=on_start)

    episode = Episode(episode_id=3)
    start = combine(hook("a"), hook("b")).on_episode_start
    assert start is not None
    start(worker=None, env_index=1, episode=episode)
    assert seen == [("a", 1), ("b", 1)]
    assert episode.user_data == {"a": 1, "b": 2}


def test_batches_are_replaced_along_the_chain():
    def add(suffix):
        def on_sample_end(*, worker, samples):
            return None if suffix is None else samples + suffix

        def on_postprocess(*, worker, policy_id, batch, original_batch):
            assert original_batch == "raw"
            return None if suffix is None else batch + suffix

        return Callbacks(on_sample_end=on_sample_end, on_postprocess_trajectory=on_postprocess)

    combined = combine(add("a"), add(None), add("b"))
    assert combined.on_sample_end is not None
    assert combined.on_postprocess_trajectory is not None
    assert combined.on_sample_end(worker=None, samples="x") == "xab"
    kept = combine(add(None), add(None))
    assert kept.on_sample_end is not None
    assert kept.on_sample_end(worker=None, samples="x") is None
    given = {"worker": None, "policy_id": "p", "original_batch": "raw"}
    assert combined.on_postprocess_trajectory(batch="x", **given) == "xab"


def test_results_are_added_to_in_order():
    def first(*, trainer, result):
        result["a"] = 1

    def second(*, trainer, result):
        result["b"] = result["a"] + 1

    hook = combine(Callbacks(on_train_result=first), Callbacks(on_train_result=second)).on_train_result
    result: dict[str, int] = {}
    assert hook is not None
    hook(trainer=None, result=result)
    assert result == {"a": 1, "b": 2}


def test_episodes_do_not_share_their_dicts():
    one, two = Episode(episode_id=1), Episode(episode_id=2)
    one.custom_metrics["x"] = 1.0
    assert two.custom_metrics == {}
