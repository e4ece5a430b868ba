# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as one page: a lane for each host, its stages on a common time axis. Needs no script and no other file.

Private to the collection.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable

from ansible_collections.trtllm.serving.plugins.plugin_utils._report import (
    OPEN,
    REST,
    TROUBLE,
    Lane,
    Report,
    Span,
    rank,
)

# Light and dark; told apart also by those who see few colours, and by their names when one points at them.
COLOURS = {
    "image": ("#8c6bb1", "#b39ddb"), "weights": ("#6a51a3", "#9e8fd6"), "convert": ("#3f6fb5", "#7aa5e8"),
    "build": ("#1b4f91", "#5b8fdc"), "publish": ("#3b8ea5", "#6cc3da"), "fetch": ("#5aa9b8", "#8fd8e5"),
    "generation": ("#9aa5b1", "#7b8794"), "begin": ("#c3cad3", "#5b6672"), "drain": ("#e0a100", "#f2c14e"),
    "stop": ("#c26a00", "#f0954a"), "surge": ("#12806a", "#4bc6aa"), "start": ("#4b9b4f", "#7cc97f"),
    "switch": ("#8a9a3a", "#bccb6a"), "load": ("#2e7d5b", "#5fbf95"), "gpu": ("#7aa82a", "#a9d65b"),
    "smoke": ("#00838f", "#4dd0e1"), "gate": ("#00838f", "#4dd0e1"), "undrain": ("#b58900", "#e6c35c"),
    "bake": ("#a2673f", "#d39b74"), "promote": ("#5c6bc0", "#9fa8da"), "settle": ("#78909c", "#90a4ae"),
    "drop": ("#b0506a", "#e58aa3"), "restore": ("#455a64", "#cfd8dc"), "balancer": ("#b58900", "#e6c35c"),
}  # fmt: skip
OTHER = ("#757575", "#9e9e9e")
OUTCOMES = {
    "done": "ok",
    "unchanged": "same",
    "failed": "bad",
    "lost": "bad",
    "skipped": "wait",
    "planned": "same",
    "": "wait",
}

STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c2126;--dim:#5c6670;--line:#dfe3e8;--lane:#f4f6f8;--grid:#e1e5ea;
--bad:#c62828;--hatch:rgba(198,40,40,.8);--badbox:#fdf1f0;--ok:#2e7d32;--wait:#8a6100}
@media(prefers-color-scheme:dark){:root{--page:#14181c;--text:#e4e8ec;--dim:#98a2ad;--line:#2d343b;--lane:#1d2329;
--grid:#2b323a;--bad:#ff7b72;--hatch:rgba(255,90,80,.85);--badbox:#2a1b1c;--ok:#6fcf7a;--wait:#e0b040}}
body{font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;background:var(--page);color:var(--text);
margin:0 auto;max-width:1700px;padding:24px}
h1{font-size:20px;margin:0 0 4px}h2{font-size:15px;margin:26px 0 6px}h2 span{font-weight:400;color:var(--dim)}
p{margin:4px 0}.dim{color:var(--dim)}a{color:inherit}
.sum b{font-variant-numeric:tabular-nums;margin-right:3px}.sum span{margin-right:18px}
.trouble{background:var(--badbox);border-left:4px solid var(--bad);border-radius:3px;margin:12px 0;padding:8px 14px}
.trouble p{overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;margin:12px 0;font-size:12px}
.legend i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:5px;vertical-align:-1px}
.axis,.row{display:grid;grid-template-columns:minmax(80px,170px) minmax(70px,84px) 1fr 292px;column-gap:10px;
align-items:center}
.axis{font-size:11px;color:var(--dim)}.ticks{position:relative;height:16px}
.ticks span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.ticks .low{transform:none}.ticks .high{transform:translateX(-100%)}
.row{padding:2px 0;min-height:24px}.row+.row{border-top:1px solid var(--line)}
.many .row{min-height:18px;padding:1px 0;font-size:12px}.many .lane{height:14px}.many .lane b{top:1px;height:12px}
.batch{font-size:11px;color:var(--dim);border-top:2px solid var(--dim);margin-top:5px;padding-top:1px}
.host{font-weight:600;overflow-wrap:anywhere}
.tag{font-size:12px;font-weight:600}.ok{color:var(--ok)}.bad{color:var(--bad)}.wait{color:var(--wait)}
.same{color:var(--dim)}
.lane{position:relative;height:18px;border-radius:3px;overflow:hidden;background:repeating-linear-gradient(90deg,
var(--grid) 0 1px,transparent 1px var(--tick)) var(--lane)}
.lane b{position:absolute;top:2px;height:14px;min-width:2px;border-radius:2px}
.lane b.failed,.legend i.failed{
background-image:repeating-linear-gradient(45deg,transparent 0 3px,var(--hatch) 3px 6px);
box-shadow:inset 0 0 0 2px var(--bad)}
.lane b.failed{min-width:7px;top:0;height:100%;z-index:1}
.lane b.open,.legend i.open{opacity:.5}
.lane b.under,.legend i.under{opacity:.28}
.move{font:11px ui-monospace,SFMono-Regular,Menlo,monospace;color:var(--dim);overflow-wrap:anywhere}
.cause{grid-column:2/-1;font-size:13px;padding:0 0 3px;overflow-wrap:anywhere}
.row:target{outline:2px solid var(--wait);outline-offset:2px}
table{border-collapse:collapse;font-size:12.5px;font-variant-numeric:tabular-nums;margin-top:6px}
th,td{text-align:right;padding:2px 9px;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--dim)}td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
.wide{overflow-x:auto}
@media(max-width:900px){.axis,.row{grid-template-columns:90px 74px 1fr}.move{grid-column:2/-1}}
@media print{.wide{overflow:visible}.row{break-inside:avoid}}
"""
# Above it the rows are low, and causes that many hosts share stand only once, at the top.
MANY = 24
NAMED = 12


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _class(stage: str) -> str:
    return "s-" + "".join(letter if letter.isalnum() else "-" for letter in stage)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return "%d s" % whole
    if whole < 3600:
        return "%d:%02d" % divmod(whole, 60)
    return "%d:%02d:%02d" % (whole // 3600, whole % 3600 // 60, whole % 60)


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _step(length: float) -> float:
    """The distance of the axis's marks, so that there are about eight."""
    for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200):
        if length / step <= 9:
            return float(step)
    return 86400.0


class Axis:
    """Places of times on the page, in percent."""

    def __init__(self, lanes: Iterable[Lane], started: float, now: float) -> None:
        spans = [span for lane in lanes for span in lane.spans]
        self.begin = min([span.start for span in spans], default=started)
        ends = [span.end if span.end is not None else now for span in spans]
        self.length = max(max(ends, default=self.begin) - self.begin, 1.0)
        self.step = _step(self.length)

    def place(self, span: Span) -> tuple[float, float]:
        end = span.end if span.end is not None else self.begin + self.length
        left = 100.0 * (span.start - self.begin) / self.length
        return max(0.0, left), max(0.0, min(100.0 - left, 100.0 * (end - span.start) / self.length))

    def marks(self) -> str:
        count = int(self.length / self.step)
        found = []
        for number in range(count + 1):
            place = 100.0 * number * self.step / self.length
            kind = ' class="low"' if number == 0 else ' class="high"' if place > 97 else ""
            found.append(f'<span{kind} style="left:{place:.3f}%">{_clock(number * self.step)}</span>')
        return "".join(found)


def _bar(span: Span, axis: Axis) -> str:
    left, width = axis.place(span)
    classes, said = [_class(span.stage)], f"{span.stage}, {span.seconds:.1f} s"
    if span.outcome == OPEN:
        classes.append("open")
        said = f"{span.stage}, not finished" + (f": {span.told}" if span.told else "")
    elif span.outcome != "ok":
        classes.append("failed")
        said += f", {span.outcome}" + (f": {span.cause}" if span.cause else "")
    return '<b class="%s" style="left:%.3f%%;width:%.3f%%" title="%s"></b>' % (
        " ".join(classes), left, width, _text(said),
    )  # fmt: skip


def _under(span: Span, axis: Axis) -> str:
    left, width = axis.place(span)
    return '<b class="under %s" style="left:%.3f%%;width:%.3f%%" title="%s"></b>' % (
        _class(span.stage), left, width, _text(f"{span.stage} in all, {span.seconds:.1f} s"),
    )  # fmt: skip


def _row(lane: Lane, axis: Axis, shared: set[str]) -> str:
    # Steps lie below their parts, so that a part can be pointed at.
    bars = "".join(_under(span, axis) for span in lane.wholes())
    bars += "".join(_bar(span, axis) for span in lane.leaves())
    if lane.source == lane.target or not lane.target:
        move = lane.source or lane.target
    else:
        move = f"{lane.source or 'nothing'} → {lane.target}"
    kind = OUTCOMES.get(lane.outcome, "wait")
    left = f" (left: {lane.left})" if lane.left and lane.outcome in TROUBLE else ""
    under_way = next((span for span in lane.spans if span.outcome == OPEN), None)
    cause = lane.cause + left if lane.cause else ""
    if not cause and not lane.outcome and under_way is not None:
        cause = f"in {under_way.stage}" + (f", {under_way.told}" if under_way.told else "")
    said = "" if not cause or lane.trouble() in shared else f'<div class="cause {kind}">{_text(cause)}</div>'
    return (
        '<div class="row" id="%s"><div class="host">%s</div><div class="tag %s">%s</div><div class="lane">%s</div>'
        '<div class="move">%s</div>%s</div>'
    ) % (_anchor(lane.host), _text(lane.host), kind, _text(_outcome(lane)), bars, _text(move), said)


def _outcome(lane: Lane) -> str:
    if lane.outcome:
        return lane.outcome
    return "under way" if any(span.outcome == OPEN for span in lane.spans) else "not reached"


def _pool(name: str, lanes: list[Lane], axis: Axis, shared: set[str]) -> str:
    rows = []
    before: int | None = None
    for lane in lanes:
        if lane.batch != before:
            rows.append('<div class="batch">%s</div>' % (f"batch {lane.batch}" if lane.batch else "not in a batch"))
        rows.append(_row(lane, axis, shared))
        before = lane.batch
    hosts = "1 host" if len(lanes) == 1 else f"{len(lanes)} hosts"
    return (
        '<h2>Pool %s <span>%s</span></h2><div class="axis"><span></span><span></span><div class="ticks">%s</div></div>'
        '<div class="%s">%s</div>'
    ) % (_text(name), hosts, axis.marks(), "many" if len(lanes) > MANY else "few", "".join(rows))


def _anchor(host: str) -> str:
    return "host-" + "".join(letter if letter.isalnum() else "-" for letter in host)


def _trouble(report: Report) -> str:
    """What went wrong, before anything else."""
    lines = [_text(note) for note in report.notes]
    for said, hosts in report.troubles():
        names = ", ".join(f'<a href="#{_anchor(host)}">{_text(host)}</a>' for host in hosts[:NAMED])
        more = f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else ""
        lines.append(f"<b>{names}{more}</b> {_text(said)}")
    return '<div class="trouble">%s</div>' % "".join(f"<p>{line}</p>" for line in lines) if lines else ""


def _numbers(report: Report, stages: list[str]) -> str:
    head = "".join("<th>%s</th>" % _text(name) for name in ("host", "outcome", *stages))
    body = []
    for lane in report.lanes:
        took = lane.seconds()
        cells = "".join("<td>%s</td>" % ("%.1f" % took[stage] if stage in took else "") for stage in stages)
        body.append("<tr><td>%s</td><td>%s</td>%s</tr>" % (_text(lane.host), _text(_outcome(lane)), cells))
    return '<h2>Seconds by stage</h2><div class="wide"><table><tr>%s</tr>%s</table></div>' % (head, "".join(body))


def page(report: Report, now: float) -> str:
    """The whole page."""
    stages = sorted({span.stage for lane in report.lanes for span in lane.leaves()}, key=rank)
    wholes = {span.stage for lane in report.lanes for span in lane.wholes()}
    colours = "".join(
        ".%s{background-color:%s}" % (_class(stage), COLOURS.get(stage, OTHER)[0])
        for stage in sorted({*stages, *wholes})
    ) + "@media(prefers-color-scheme:dark){%s}" % "".join(
        ".%s{background-color:%s}" % (_class(stage), COLOURS.get(stage, OTHER)[1])
        for stage in sorted({*stages, *wholes})
    )
    counts: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for lane in report.lanes:
        counts[_outcome(lane)] = counts.get(_outcome(lane), 0) + 1
        kinds[_outcome(lane)] = OUTCOMES.get(lane.outcome, "wait")
    summary = "".join(
        f'<span class="{kinds[name]}"><b>{count}</b>{_text(name)}</span>' for name, count in counts.items()
    )
    axis = Axis(report.lanes, report.started, now)
    pools: dict[str, list[Lane]] = {}
    for lane in report.lanes:
        pools.setdefault(lane.pool, []).append(lane)
    shared = {said for said, hosts in report.troubles() if len(hosts) > 1}
    spans = [span for lane in report.lanes for span in lane.leaves()]
    legend = "".join(f'<span><i class="{_class(stage)}"></i>{_text(stage)}</span>' for stage in stages)
    if any(span.outcome not in ("ok", OPEN) for span in spans):
        legend += '<span><i class="failed"></i>failed there</span>'
    if wholes:
        legend += '<span><i class="under %s"></i>rest of a step</span>' % _class(sorted(wholes, key=rank)[0])
    if any(span.outcome == OPEN for span in spans):
        legend += '<span><i class="open %s"></i>not finished</span>' % _class(stages[-1])
    hosts = "1 host" if len(report.lanes) == 1 else f"{len(report.lanes)} hosts"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><title>Rollout %s</title><style>%s%s.lane{--tick:%.4f%%}</style>'
        '</head><body><h1>Rollout %s</h1><p class="dim">%s, took %s, %s</p><p class="sum">%s</p>%s'
        '<div class="legend">%s</div>%s%s</body></html>\n'
    ) % (
        _text(report.run), STYLE, colours, 100.0 * axis.step / axis.length, _text(report.run), _stamp(report.started),
        _clock(max(0.0, report.ended - report.started)), hosts, summary, _trouble(report), legend,
        "".join(_pool(name, lanes, axis, shared) for name, lanes in pools.items()),
        _numbers(report, [*stages, *([REST] if wholes else [])]) if stages else "",
    )  # fmt: skip
