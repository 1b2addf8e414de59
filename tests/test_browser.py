"""The browser that other tests look through."""

import pytest
from browser import Browser

PAGE = """<!doctype html><title>t</title><meta name="viewport" content="width=device-width"><body>
<button onclick="this.textContent='clicked'">b</button>
<img src="https://example.com/x.png">
<script>
addEventListener("keydown", e => { window.last = (e.shiftKey ? "shift " : "") + e.key });
new Worker(URL.createObjectURL(new Blob(["fetch('https://example.org/worker').catch(() => postMessage(1))"])));
console.error("oh", 1); setTimeout(() => { throw new Error("late") }, 50);
</script>"""


@pytest.mark.slow
def test_a_page_is_driven_and_watched(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    with Browser() as browser:
        page = browser.open((tmp_path / "a.html").as_uri(), width=500, height=400)
        assert page.evaluate("[innerWidth, innerHeight]") == [500, 400]
        assert page.evaluate("Promise.resolve({a: 1})") == {"a": 1}
        page.click("button")
        assert page.wait("document.querySelector('button').textContent == 'clicked'")
        for key in ("n", "+", "-", "ArrowLeft", "Enter"):
            page.press(key)
            assert page.evaluate("last") == key
        page.press("Shift+Tab")
        assert page.evaluate("last") == "shift Tab"
        dark = "matchMedia('(prefers-color-scheme: dark)').matches"
        page.dark()
        assert page.evaluate(dark)
        page.dark(False)
        assert not page.evaluate(dark)
        page.screenshot(tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        page.settle(0.5)
        assert set(page.outside) == {"https://example.com/x.png", "https://example.org/worker"}
        assert "oh 1" in page.errors
        assert "Error: late" in page.errors
        with pytest.raises(RuntimeError, match="nothing is not defined"):
            page.evaluate("nothing")
        with pytest.raises(TimeoutError, match="never true"):
            page.wait("false", 0.2)
