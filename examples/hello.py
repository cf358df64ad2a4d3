"""The first syscall: ask a model one question. Start a kernel first: `aios up`."""

from aios_sdk import Agent


def main() -> None:
    with Agent("hello") as me:
        call = me.llm.chat.start("Say hello in five words.", max_tokens=24)
        answer = call.result()
        print(answer.text)
        timings = call.timings
        if timings is not None:
            print(
                f"{answer.usage.output_tokens} tokens of {answer.model}, "
                f"waited {timings.queued_s:.3f} s, ran {timings.ran_s:.3f} s "
                f"in {timings.slices} slice{'' if timings.slices == 1 else 's'}"
            )


if __name__ == "__main__":
    main()
