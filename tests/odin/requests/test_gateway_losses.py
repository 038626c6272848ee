"""The gateway when stages are lost: what was with them is sent again, once, and the first answer counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import numbers
from patience import PROMPT_S
from test_gateway_queue import STAGES, WHOLE, Stages, gateway_and_stages

from odin.errors import PoisonRequestError
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.requests.gateway import GatewayCounts
from odin.stages.channel.link import Message
from odin.stages.channel.readiness import WORKING
from odin.stages.channel.wire import NO_STAGE, Header, Kind

NAMES = [f"stage {stage} (cpu:{stage}, process {100 + stage})" for stage in range(STAGES)]


def works_on(stages: Stages, stage: int, request: int) -> None:
    """As a stage says what it computes."""
    sender = stages.gateway.sender(stage)
    assert sender is not None
    sender.readiness.words[WORKING] = float(request)


def lose(stages: Stages, stage: int, *, dead: bool = True) -> tuple[int, int]:
    return stages.gateway.lose(stage, NAMES[stage], dead=dead)


def wanted(stages: Stages, stage: int) -> Message:
    """The next request that a stage does not skip."""
    while not (message := stages.take(stage)).wanted:
        message.release()
    return message


def answered(stages: Stages, stage: int, count: int) -> list[int]:
    seen = []
    for _ in range(count):
        message = wanted(stages, stage)
        seen.append(message.header.request)
        stages.answer(stage, message)
    return seen


# -- one queue for all ------------------------------------------------------------------------------------------------


def test_what_a_dead_stage_had_is_sent_again_and_what_another_has_is_not():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.submit((numbers(number),)) for number in range(2)]
        stages.take(1)  # request 0, which dies with it
        held = stages.take(0)
        assert lose(stages, 1) == (1, 0)
        stages.answer(0, held)
        assert answered(stages, 0, 1) == [0]
        for number, future in enumerate(futures):
            assert torch.equal(future.result(PROMPT_S)[0], numbers(number))
        assert stages.gateway.counts() == GatewayCounts(2, 0, 0)
        assert stages.gateway._under_way.free == 3


def test_what_nobody_is_known_to_have_is_sent_again_and_computed_once():
    # A stage may die between taking a request from the queue and saying so.
    with gateway_and_stages() as stages:
        futures = [stages.gateway.submit((numbers(number),)) for number in range(2)]
        assert stages.inboxes[1].receive(stage=1).header.request == 0  # and says nothing
        assert lose(stages, 1) == (2, 0)
        assert answered(stages, 0, 2) == [0, 1]
        assert [future.exception(PROMPT_S) for future in futures] == [None, None]
        assert stages.gateway._inlet.queue.words.waiting == 0


def test_one_that_is_handed_over_is_with_both():
    for lost in range(STAGES):
        with gateway_and_stages() as stages:
            future = stages.gateway.submit((numbers(0),))
            message = stages.take(0)
            home = stages.inboxes[0].home
            assert home is not None
            home.set_holder(message.header.home, 0, message.header.attempt, 0, 1)
            assert lose(stages, lost) == (1, 0)
            assert answered(stages, 1 - lost, 1) == [0]
            assert future.exception(PROMPT_S) is None


def test_what_went_to_another_machine_may_be_with_any_stage(monkeypatch: pytest.MonkeyPatch):
    # Stage 0 notes that it hands over to stage 1; who has it after that, nobody notes here.
    for far in (1, 2):
        with gateway_and_stages() as stages:
            monkeypatch.setattr(stages.gateway._inlet, "is_here", lambda stage, far=far: stage < far)
            monkeypatch.setattr(stages.gateway._inlet, "silence", lambda stage: None)  # here there are two
            stages.gateway.submit((numbers(0),))
            message = stages.take(0)
            home = stages.inboxes[0].home
            assert home is not None
            home.set_holder(message.header.home, 0, message.header.attempt, 0, 1)
            assert stages.gateway.lose(2, "stage 2", dead=False) == (1 if far == 1 else 0, 0)


def test_of_two_answers_the_first_counts():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        old = stages.take(1)
        assert lose(stages, 1, dead=False) == (1, 0)  # it hangs
        new = wanted(stages, 0)
        assert (old.header.attempt, new.header.attempt) == (1, 2)
        stages.answer(1, old)  # it did not
        assert torch.equal(future.result(PROMPT_S)[0], numbers(0))
        later = stages.gateway.submit((numbers(5),))  # into the same slot, which the second attempt still reads
        stages.answer(0, new)
        stages.gateway.regain(1, replaced=False)
        assert answered(stages, 1, 1) == [1]
        assert torch.equal(later.result(PROMPT_S)[0], numbers(5))
        assert stages.gateway.counts() == GatewayCounts(2, 0, 0)


def test_with_no_stage_left_requests_wait_for_one():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.enqueue((numbers(number),)) for number in range(5)]
        stages.take(0)
        stages.take(1)
        lose(stages, 0, dead=False)
        lose(stages, 1, dead=False)
        assert not any(future.done() for future in futures)
        stages.gateway.regain(0, replaced=False)
        assert sorted(answered(stages, 0, 5)) == [0, 1, 2, 3, 4]
        assert [future.exception(PROMPT_S) for future in futures] == [None] * 5


def test_cancelled_and_late_requests_of_a_lost_stage_are_not_sent_again():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        stages.take(1)
        assert future.cancel()
        assert stages.gateway._under_way.free == 2  # it may still read the slot
        assert lose(stages, 1) == (1, 0)
        assert stages.gateway._under_way.free == 3
        stages.gateway.submit((numbers(1),))
        assert answered(stages, 0, 1) == [1]


# -- what is handed to one that is lost, by stages that do not know it yet --------------------------------------------


def hands_to_the_lost(stages: Stages, message: Message) -> None:
    """As stage 0 does that hands over to stage 1 when it does not know yet that this is lost."""
    home = stages.inboxes[0].home
    assert home is not None
    home.set_holder(message.header.home, message.header.request, message.header.attempt, 0, 1)
    message.release()


def prepared_without_1(stages: Stages) -> None:
    stages.gateway.switch(1, Plan((6, 0)), Windows.parse("@6"), stages=(0,))


def replaced_1(stages: Stages) -> None:
    stages.gateway.regain(1, replaced=True)


@pytest.mark.parametrize("dead", [True, False])
@pytest.mark.parametrize("all_know", [prepared_without_1, replaced_1])
def test_what_a_lost_stage_got_after_its_loss_was_known_is_sent_again(all_know: Callable[[Stages], None], dead: bool):
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        message = stages.take(0)
        assert lose(stages, 1, dead=dead) == (0, 0)  # stage 0 has it
        hands_to_the_lost(stages, message)
        all_know(stages)
        assert answered(stages, 0, 1) == [0]
        assert future.exception(PROMPT_S) is None
        assert stages.gateway._under_way.free == 3


def test_what_the_others_have_stays_with_them():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.submit((numbers(number),)) for number in range(2)]
        message = stages.take(0)
        lose(stages, 1)
        prepared_without_1(stages)
        replaced_1(stages)
        assert message.wanted
        stages.answer(0, message)
        waited = wanted(stages, 0)
        assert (waited.header.request, waited.header.attempt) == (1, 2)  # nobody was known to have it when 1 died
        stages.answer(0, waited)
        assert [future.exception(PROMPT_S) for future in futures] == [None] * 2


def test_what_a_lost_stage_got_after_its_loss_and_nobody_waits_for_frees_its_place():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        message = stages.take(0)
        lose(stages, 1)
        hands_to_the_lost(stages, message)
        assert future.cancel()
        assert stages.gateway._under_way.free == 2
        prepared_without_1(stages)
        assert stages.gateway._under_way.free == 3


def test_what_went_to_another_machine_after_the_loss_is_sent_again(monkeypatch: pytest.MonkeyPatch):
    # Stage 1 is there: to whom it handed over, nobody notes here.
    for far in (1, 2):
        with gateway_and_stages() as stages:
            monkeypatch.setattr(stages.gateway._inlet, "is_here", lambda stage, far=far: stage < far)
            monkeypatch.setattr(stages.gateway._inlet, "silence", lambda stage: None)  # here there are two
            stages.gateway.submit((numbers(0),))
            message = stages.take(0)
            stages.gateway.lose(2, "stage 2", dead=True)
            hands_to_the_lost(stages, message)  # to stage 1, which lives
            attempt = message.header.attempt
            stages.gateway.switch(1, Plan((6, 0)), Windows.parse("@6"), stages=(0,))
            again = stages.gateway._under_way.requests[0].attempt
            assert again == (attempt + 1 if far == 1 else attempt)


# -- a connection between two stages that breaks -----------------------------------------------------------------------


def told_unreached(stages: Stages, by: int, stage: int) -> None:
    """As a stage tells it; with a request answered after it, so that it has been heard."""
    stages.senders[by].send(Header(Kind.UNREACHED, by, cut=stage))
    future = stages.gateway.submit((numbers(9),))
    assert len(answered(stages, by, 1)) == 1
    assert future.exception(PROMPT_S) is None


def test_one_that_another_stage_cannot_reach_is_gone():
    with gateway_and_stages() as stages:
        told_unreached(stages, 0, 1)
        assert stages.gone == [1]


@pytest.mark.parametrize("dead", [0, 1])
def test_what_is_told_of_or_by_one_that_is_gone_is_old(dead: int):
    with gateway_and_stages() as stages:
        lose(stages, dead)
        stages.senders[0].send(Header(Kind.UNREACHED, 0, cut=1))
        stages.senders[0].send(Header(Kind.UNREACHED, 1, cut=0))
        future = stages.gateway.submit((numbers(9),))
        assert answered(stages, 1 - dead, 1) == [0]
        assert future.exception(PROMPT_S) is None
        assert stages.gone == []


def test_one_that_hangs_and_cannot_be_reached_is_gone_and_its_requests_are_sent_again_once():
    with gateway_and_stages() as stages:
        stages.gateway.submit((numbers(0),))
        stages.take(1)
        assert lose(stages, 1, dead=False) == (1, 0)
        assert answered(stages, 0, 1) == [0]
        told_unreached(stages, 0, 1)
        assert stages.gone == [1]
        stages.gateway.submit((numbers(1),))
        stages.take(0)
        assert lose(stages, 1) == (0, 0)
        assert lose(stages, 1) == (0, 0)  # its channels end because they were closed here


def test_connections_that_end_with_the_pipeline_are_nobodys_loss():
    with gateway_and_stages() as stages, ThreadPoolExecutor(1) as pool:
        closing = pool.submit(stages.gateway.close)
        assert stages.end(1) == []
        stages.senders[0].send(Header(Kind.UNREACHED, 0, cut=1))
        assert stages.end(0) == []
        closing.result(PROMPT_S)
        assert stages.gone == []


# -- requests that kill ----------------------------------------------------------------------------------------------


def test_a_request_that_two_stages_died_on_fails_and_the_others_do_not():
    with gateway_and_stages() as stages:
        poison, other = (stages.gateway.submit((numbers(number),)) for number in range(2))
        stages.take(0)
        works_on(stages, 0, 0)
        stages.take(1)
        works_on(stages, 1, 1)
        assert lose(stages, 0) == (1, 0)
        works_on(stages, 1, 0)  # having answered the other one, say: its answer was lost with it
        assert lose(stages, 1) == (2, 1)
        error = poison.exception(PROMPT_S)
        assert isinstance(error, PoisonRequestError)
        assert (error.request, error.stages) == (0, tuple(NAMES))
        assert "request 0 was being computed when stage 0 (cpu:0, process 100) and stage 1 (cpu:1, process" in str(
            error
        )
        assert not other.done()
        assert stages.gateway.counts() == GatewayCounts(0, 1, 1)


def test_requests_that_only_waited_where_stages_died_are_innocent():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.submit((numbers(number),)) for number in range(2)]
        for stage in range(STAGES):
            works_on(stages, stage, 7)
            stages.take(stage)
            lose(stages, stage)
        assert not any(future.done() for future in futures)


def test_a_request_is_not_held_against_it_if_the_stage_answers_again():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        for stage in (0, 1, 0, 1):
            stages.take(stage)
            works_on(stages, stage, 0)
            lose(stages, stage, dead=False)
            stages.gateway.regain(stage, replaced=False)
        assert not future.done()
        assert answered(stages, 0, 1) == [0]


# -- plans -----------------------------------------------------------------------------------------------------------


def test_under_a_plan_requests_are_held_until_the_stages_that_live_are_prepared():
    with gateway_and_stages(Windows.of_plan(Plan((2, 4)))) as stages:
        futures = [stages.gateway.enqueue((numbers(number),)) for number in range(5)]
        stages.take(0)
        assert lose(stages, 0)[0] == 3
        assert len(stages.gateway._under_way._held) == 3
        stages.gateway.switch(1, Plan((0, 6)), Windows.parse("@6"), stages=(1,))
        assert stages.gateway.plan == Plan((0, 6))
        headers = []
        for _ in range(5):
            message = wanted(stages, 1)
            headers.append((message.header.request, message.header.epoch))
            stages.answer(1, message)
        assert headers == [(number, 1) for number in range(5)]
        assert [future.exception(PROMPT_S) for future in futures] == [None] * 5


def test_one_that_comes_back_is_sent_again_but_not_for_ever_as_fast_as_it_comes():
    with gateway_and_stages(Windows.of_plan(Plan((2, 4)))) as stages:
        future = stages.gateway.submit((numbers(0),))
        for attempt in range(1, 7):
            message = wanted(stages, 0)
            assert message.header.attempt == attempt
            stages.senders[0].send(Header(Kind.RETURNED, 0, attempt=attempt, cut=1))
            message.release()
        message = wanted(stages, 0)  # a moment later
        stages.answer(0, message)
        assert future.exception(PROMPT_S) is None
        assert stages.gone == [1]  # which the stage before cannot reach


def test_what_comes_back_of_an_old_attempt_or_an_unknown_request_is_passed_over():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        stages.take(1)
        lose(stages, 1, dead=False)
        for request, attempt in ((0, 1), (77, 1)):
            stages.senders[1].send(Header(Kind.RETURNED, request, attempt=attempt, cut=NO_STAGE))
        message = wanted(stages, 0)
        assert message.header.attempt == 2
        stages.answer(0, message)
        assert future.exception(PROMPT_S) is None
        assert stages.gone == []


def test_the_end_of_a_stages_channel_is_told_and_others_go_on():
    with gateway_and_stages() as stages:
        stages.senders[1].close(graceful=False)
        future = stages.gateway.submit((numbers(0),))
        assert answered(stages, 0, 1) == [0]
        assert future.exception(PROMPT_S) is None
        end_s = time.monotonic() + PROMPT_S
        while not stages.gone and time.monotonic() < end_s:  # the answer may have been heard first
            time.sleep(0.01)
        assert stages.gone == [1]


def test_the_view_of_windows_has_a_row_for_every_stage():
    with gateway_and_stages() as stages:
        assert stages.gateway.serving().windows == str(WHOLE)
        stages.gateway.switch(1, Plan((0, 6)), Windows.parse("@6"), stages=(1,))
        assert (stages.gateway.serving().windows, stages.gateway.serving().plan) == ("", Plan((0, 6)))
