"""Many programs at once: what is cancelled, what is run again, and what is said of the rest."""

from functools import partial

import httpx
import psycopg

from aios_broker.ledger.programs import LOOKED_AT
from tests.api_scene import ACME, ApiScene
from tests.integration.test_page_decisions import asked_to_delete
from tests.page_scene import logged_in, send_form
from tests.waiting import wait_until

TWO_SECONDS: dict[str, object] = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 400,
}

_LONG_AGO = """
    INSERT INTO syscall (job_id, module, agent, program, tenant, kind, state, submitted_at,
                         attempts, slices, suspensions, tokens, ran_ms, worker)
    SELECT md5('long ago ' || n), 'tool', 'ancient', 'ancient', 'ancient', 'tool.echo', 'finished',
           timestamptz '2001-01-01' + n * interval '1 s', 1, 1, 0, 0, 0, ''
      FROM generate_series(1, %s) AS n
"""


def state_of(client: httpx.Client, syscall: str) -> str:
    """Return where a syscall stands."""
    return str(client.get(f"/v1/syscalls/{syscall}").json()["state"])


def is_finished(client: httpx.Client, syscall: str) -> bool:
    """Tell whether it has ended well."""
    return state_of(client, syscall) == "finished"


def failed(client: httpx.Client, program: str) -> str:
    """Ask for what does not end in time; return its id once it has failed."""
    body = {"body": TWO_SECONDS, "program": program, "deadline_s": 0.1}
    asked = str(client.post("/v1/syscalls", json=body).json()["id"])
    wait_until(lambda: state_of(client, asked) == "failed")
    return asked


def is_listed(client: httpx.Client, agent: str) -> bool:
    """Tell whether a program of an agent is listed as one that has failed lately."""
    shown = client.get("/", params={"tenant": ACME, "agent": agent, "failed": "true"}).text
    return f'value="{ACME} {agent}' in shown


def test_what_has_failed_runs_again_once_it_was_confirmed(api: ApiScene) -> None:
    name = "page-again"
    with api.client(api.token(name)) as agent, logged_in(api, api.operator) as operator:
        asked = [failed(agent, "again") for _ in range(2)]
        program = f"{ACME} {name} again"

        def asks_about(number: int) -> bool:
            question = send_form(operator, "/programs/retry", program=program)
            return f"<strong>{number} syscalls.</strong>" in question.text

        wait_until(partial(asks_about, 2))  # the ledger has them a moment later
        assert state_of(agent, asked[0]) == "failed"
        done = send_form(operator, "/programs/retry", program=program, confirm="yes")
        assert "2 of 2 syscalls submitted again" in done.text
        for each in asked:
            wait_until(partial(is_finished, agent, each))


def test_what_was_not_looked_through_is_said(api: ApiScene) -> None:
    name = "page-far-back"
    with api.client(api.token(name)) as agent, logged_in(api, api.operator) as operator:
        failed(agent, "far-back")
        wait_until(lambda: is_listed(operator, name))
        program = f"{ACME} {name} far-back"
        asked = send_form(operator, "/programs/retry", program=program)
        assert "were looked through" not in asked.text
        long_ago(api, LOOKED_AT)  # with the one above one more than is looked at
        asked = send_form(operator, "/programs/retry", program=program)
        assert (
            f"Only the newest {LOOKED_AT:,} syscalls of the kernel were looked through"
            in asked.text
        )
        assert "<strong>1 syscall.</strong>" in asked.text


def long_ago(api: ApiScene, number: int) -> None:
    """Have the ledger know of so many syscalls of the year 2001."""
    with psycopg.connect(api.database_url.replace("+psycopg", "")) as connection:
        connection.execute(_LONG_AGO, (number,))


def test_why_others_are_not_run_again_is_said(api: ApiScene) -> None:
    name = "page-not-again"
    with api.client(api.token(name)) as agent, logged_in(api, api.operator) as operator:
        asked = failed(agent, "barred")
        wait_until(lambda: is_listed(operator, name))
        given = operator_sets(api, name, max_queued=0)
        assert given.status_code == 200, given.text
        program = f"{ACME} {name} barred"
        done = send_form(operator, "/programs/retry", program=program, confirm="yes")
        assert "0 of 1 syscall submitted again" in done.text
        assert "1 are more than a quota" in done.text
        assert state_of(agent, asked) == "failed"


def operator_sets(api: ApiScene, agent: str, **limits: object) -> httpx.Response:
    with api.client(api.operator) as client:
        return client.put(
            "/v1/quotas", json={"module": "llm", "tenant": ACME, "agent": agent, **limits}
        )


def test_an_agent_runs_its_own_again_and_nobody_elses(api: ApiScene) -> None:
    name = "page-own-again"
    token = api.token(name)
    with api.client(token) as agent, logged_in(api, token) as page:
        asked = failed(agent, "own")
        wait_until(lambda: is_listed(page, name))
        for foreign in (f"{ACME} bob own", "globex eve own"):
            assert send_form(page, "/programs/retry", program=foreign).status_code == 404
        done = send_form(page, "/programs/retry", program=f"{ACME} {name} own", confirm="yes")
        assert "1 of 1 syscall submitted again" in done.text
        wait_until(partial(is_finished, agent, asked))
        again = send_form(page, "/programs/retry", program=f"{ACME} {name} own", confirm="yes")
        assert "1 of 1" not in again.text


def test_many_programs_of_many_agents_end_at_once(api: ApiScene) -> None:
    long = {**TWO_SECONDS, "max_tokens": 16_000}
    names = [f"page-many-{number}" for number in range(3)]
    with logged_in(api, api.operator) as operator:
        clients = [api.client(api.token(name)) for name in names]
        asked = []
        for client in clients:
            for program in ("ends", "stays"):
                answer = client.post("/v1/syscalls", json={"body": long, "program": program})
                asked.append((client, program, answer.json()["id"]))
        programs = [f"{ACME} {name} ends" for name in names]
        question = send_form(operator, "/programs/cancel", program=programs)
        assert "Cancel: 3 programs?" in question.text
        assert "<strong>3 syscalls.</strong>" in question.text
        done = send_form(operator, "/programs/cancel", program=programs, confirm="yes")
        assert "3 of 3 syscalls cancelled" in done.text
        for client, program, syscall in asked:
            state = state_of(client, syscall)
            assert (state == "cancelled") == (program == "ends"), (program, state)
        send_form(
            operator,
            "/programs/cancel",
            program=[f"{ACME} {name} stays" for name in names],
            confirm="yes",
        )
        for client in clients:
            client.close()


def test_several_approvals_are_summed_up_and_decided_at_once(api: ApiScene) -> None:
    with (
        api.client(api.token("page-asks")) as agent,
        logged_in(api, api.operator) as operator,
    ):
        asked = [asked_to_delete(agent, f"/several-{number}.md") for number in range(3)]
        listed = operator.get("/approvals").text
        assert 'name="approval"' in listed
        ids = [one["id"] for one in asked]
        question = send_form(operator, "/approvals/decide", approval=ids[:2], decision="approve")
        assert "Approve: 2 approvals?" in question.text
        words = " ".join(question.text.split())
        assert "<strong>delete</strong>: 2. 2 things would go." in words
        assert "several-0.md" in question.text
        assert "several-2.md" not in question.text
        assert agent.get(f"/v1/approvals/{ids[0]}").json()["state"] == "waiting"
        given = {"approval": ids[:2], "decision": "approve", "confirm": "yes"}
        done = send_form(operator, "/approvals/decide", **given)
        assert "2 of 2 approved" in done.text
        again = send_form(operator, "/approvals/decide", **given)
        assert "0 of 0 approved" in again.text
        assert "2 were decided already" in again.text
        for one in asked[:2]:
            wait_until(partial(is_finished, agent, one["syscall_id"]))
        denied = send_form(
            operator,
            "/approvals/decide",
            approval=ids,
            decision="deny",
            reason="not <b>now</b>",
            confirm="yes",
        )
        assert "1 of 1 denied" in denied.text
        answer = agent.get(f"/v1/syscalls/{asked[2]['syscall_id']}/wait", params={"wait_s": 10})
        assert "not <b>now</b>" in answer.json()["error"]["message"]


def test_who_may_not_decide_one_may_not_decide_several(api: ApiScene) -> None:
    with (
        api.client(api.token("page-waits")) as agent,
        logged_in(api, api.agent) as colleague,
        logged_in(api, api.foreigner) as stranger,
    ):
        one = asked_to_delete(agent, "/not-theirs.md")
        given = {"approval": one["id"], "decision": "approve", "confirm": "yes"}
        assert send_form(stranger, "/approvals/decide", **given).status_code == 404
        assert send_form(colleague, "/approvals/decide", **given).status_code == 404
        assert 'action="/approvals/decide"' not in colleague.get("/approvals").text
        assert agent.get(f"/v1/approvals/{one['id']}").json()["state"] == "waiting"
        with logged_in(api, api.operator) as operator:
            for decision in ("", "nonsense"):
                wrong = send_form(operator, "/approvals/decide", **{**given, "decision": decision})
                assert wrong.status_code == 400
            many = send_form(
                operator, "/approvals/decide", **{**given, "approval": [f"{n}" for n in range(300)]}
            )
            assert many.status_code == 400


def test_a_program_that_asks_a_person_says_so_though_it_waits_besides(api: ApiScene) -> None:
    with (
        api.client(api.token("page-both")) as agent,
        logged_in(api, api.operator) as operator,
    ):
        one = asked_to_delete(agent, "/first.md")
        long = {**TWO_SECONDS, "max_tokens": 16_000}
        asked = [
            agent.post("/v1/syscalls", json={"body": long}).json()["id"] for _ in range(12)
        ]  # more than the core has slots

        def says_so() -> bool:
            shown = operator.get("/", params={"tenant": ACME, "agent": "page-both"}).text
            return f"/approvals/of/{one['syscall_id']}" in shown

        wait_until(says_so)
        for each in asked:
            agent.post(f"/v1/syscalls/{each}/cancel")
