import { expect, test } from "vitest";
import { headline } from "./labels";

test("a list says one sentence of a job, not the traceback behind it", () => {
  expect(headline({ status_text: "The training code raised an error: KeyError: 'x'\nTraceback (most recent call last):\n  File …" })).toBe(
    "The training code raised an error: KeyError: 'x'",
  );
  expect(headline({ status_text: "Training." })).toBe("Training.");
});
