"""The browser of the tests: where there is none, tests are skipped, but not where one is required."""

import pytest

import browser


def test_without_a_browser_tests_are_skipped_or_fail_where_one_is_required(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda _: None)
    monkeypatch.delenv(browser.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is no Chromium: make browser"):
        browser.find()
    monkeypatch.setenv(browser.REQUIRED, "required")
    with pytest.raises(pytest.fail.Exception, match="there is no Chromium"):
        browser.find()


def test_continuous_integration_installs_a_browser_and_requires_it(pytestconfig):
    path = pytestconfig.rootpath / ".ci" / "run"
    if not path.exists():
        pytest.skip("a source distribution has no continuous integration")
    script = path.read_text()
    assert (
        script.index("make browser") < script.index(f"export {browser.REQUIRED}=required") < script.index("make test")
    )
