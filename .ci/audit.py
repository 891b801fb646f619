"""Look the installed packages up among known vulnerabilities: ``make audit``.

Without pip-audit, or where no list of advisories answers, it says so and is content: that is no fault of the code.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Audit; 1 where something is known to be vulnerable."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--timeout", "10"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["pip-audit gave no answer"])[-1]
        print(f"audit skipped: {why}")
        return 0
    looked_up = [package for package in packages if "skip_reason" not in package]
    known = [(package, found) for package in looked_up for found in package["vulns"]]
    for package, found in known:
        fixed = f", mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else ""
        print(f"{package['name']} {package['version']}: {found['id']}{fixed}")
    if not looked_up:
        print(f"audit skipped: the package index here knows no advisories for any of {len(packages)} packages")
    else:
        print(f"audited {len(looked_up)} of {len(packages)} packages, {len(known)} known vulnerabilities")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
