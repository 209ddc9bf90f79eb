"""Look up what constraints.txt pins in a list of known vulnerabilities, with pip-audit.

    python .ci/audit.py

Fails if there is one that `.ci/audit-ignored.txt` does not name. If the list cannot be reached or does not answer as
expected, it says that nothing was audited and passes, so that the checks also run without a network. To see whether
the list answers, it first looks up a package that is known to be vulnerable: pip-audit itself cannot distinguish a
service that knows no packages from one that knows no vulnerabilities.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).parents[1]
KNOWN_VULNERABLE = "jinja2==2.10"  # CVE-2019-10906
TIMEOUT = 10  # seconds


def read_ignored(path: Path) -> dict[str, str]:
    """Return the ignored identifiers with the reasons.

    Raises:
        ValueError: a line has no reason.
    """
    ignored = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition("#")
            if not reason.strip():
                raise ValueError(f"{path.name}: {line!r} gives no reason; write 'IDENTIFIER  # reason'")
            ignored[name.strip()] = reason.strip()
    return ignored


def look_up(requirements: Path, options: list[str]) -> tuple[list[dict], str]:
    """Return what pip-audit found for each package, or, if it got no answer, an empty list and the reason."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--timeout", str(TIMEOUT), "--progress-spinner", "off"]
    ended = subprocess.run([*command, "--format", "json", *options], capture_output=True, text=True)
    try:
        return json.loads(ended.stdout)["dependencies"], ""
    except json.JSONDecodeError:
        return [], (ended.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--osv-url", help="address of a list to use instead of the public one")
    parser.add_argument("--requirements", type=Path, default=ROOT / "constraints.txt", help="the packages to look up")
    parser.add_argument(
        "--ignored", type=Path, default=ROOT / ".ci" / "audit-ignored.txt", help="the vulnerabilities to ignore"
    )
    arguments = parser.parse_args()
    service = ["--osv-url", arguments.osv_url] if arguments.osv_url else []
    ignored = read_ignored(arguments.ignored)

    with NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(KNOWN_VULNERABLE)
        file.flush()
        known, why = look_up(Path(file.name), service)
    if not any(package.get("vulns") for package in known):
        print(f"AUDIT SKIPPED, nothing was looked up: {why or f'the list does not know {KNOWN_VULNERABLE}'}")
        return 0

    options = [option for name in ignored for option in ("--ignore-vuln", name)]
    packages, why = look_up(arguments.requirements, [*service, *options])
    if not packages:
        print(f"AUDIT SKIPPED, the list stopped answering: {why}")
        return 0
    left_out = [package for package in packages if "skip_reason" in package]
    found = [(package, vulnerability) for package in packages for vulnerability in package.get("vulns", [])]
    for package in left_out:
        print(f"not looked up: {package['name']}: {package['skip_reason']}")
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(
        f"{len(packages) - len(left_out)} packages looked up, {len(left_out)} not; "
        f"{len(found)} known vulnerabilities, not counting {len(ignored)} ignored"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
