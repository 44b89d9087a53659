"""The page's only style sheet: light and dark, no external resource."""

#: Palette slots 1 to 8 of the plots, for light and dark pages; neighbours differ in lightness as well as in
#: hue.
LIGHT = ("#2a66cf", "#d8690b", "#0d8a6a", "#b33d8c", "#7452d0", "#8b6c00", "#c33a3f", "#477a92")
DARK = ("#74a9ff", "#ff9d4d", "#45cfa6", "#f083c6", "#b09bff", "#dcbc45", "#ff8285", "#8dbdd6")


def _slots(colors: tuple[str, ...]) -> str:
    return "".join(f"--c{index}:{color};" for index, color in enumerate(colors, 1))


def _slot_rules() -> str:
    rules = []
    for index in range(len(LIGHT) + 1):
        color = f"var(--c{index})" if index else "var(--muted)"
        rules.append(f".s{index}{{stroke:{color}}}.c{index}{{fill:{color};background:{color}}}")
    return "".join(rules)


STYLE = (
    ':root{color-scheme:light dark;--sans:system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;'
    "--page:#f6f6f3;--card:#fff;--text:#1b1c1e;--soft:#5a5d63;--muted:#9a9da3;"
    "--rule:#e4e4df;--found:#e6eefb;--found-edge:#2a66cf;--history:#dcd3f5;--fields:#cfe6dd;--products:#fbdfc4;"
    "--best:#d8690b;--bar:#a9c1ea;" + _slots(LIGHT) + "}"
    "@media(prefers-color-scheme:dark){:root{--page:#131416;--card:#1c1e21;--text:#ececea;--soft:#a7abb2;"
    "--muted:#777b83;--rule:#33363b;--found:#1f3152;--found-edge:#74a9ff;--history:#3d3166;--fields:#1f4a3c;"
    "--products:#5d3a17;--best:#ff9d4d;--bar:#3f5f95;" + _slots(DARK) + "}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font-family:var(--sans);font-size:15px;
line-height:1.5; font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650}
h2{font-size:18px;margin:0 0 4px;font-weight:650}
.sub,.note{color:var(--soft);margin:0 0 14px;max-width:92ch}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:20px 22px;
margin-top:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:12px 16px}
.tile b{display:block;font-size:20px;font-weight:650;line-height:1.35;white-space:nowrap}
.tile span{color:var(--soft);font-size:13px;line-height:1.35;display:block}
.banner{border-left:4px solid var(--best);padding:10px 14px;margin-top:18px;background:var(--card);
 border-radius:6px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:22px}
.grid.small{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
.grid>*{min-width:0}
figure{margin:0}
figcaption{font-weight:600;margin-bottom:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{font-weight:600;color:var(--soft);text-align:left;border-bottom:1px solid var(--muted);
vertical-align:bottom}
th,td{padding:5px 8px 5px 4px}
td{border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}
td:first-child,th:first-child{padding-left:8px}
.n{text-align:right;white-space:nowrap}
th.n{white-space:normal}
.dense{font-size:12.5px}
.dense th,.dense td{padding:5px 7px 5px 2px}
.pairs td{overflow-wrap:anywhere}
.pairs td:first-child{white-space:nowrap;width:1%;padding-right:16px}
.names td:first-child{white-space:nowrap}
tr.found td{background:color-mix(in srgb,var(--found) 45%,transparent)}
tr.found td:first-child{font-weight:650}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:13px}
pre{overflow-x:auto;margin:8px 0 0}
details{margin-top:14px}
summary{cursor:pointer;color:var(--soft)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0 0;padding:0;font-size:13px;
 color:var(--soft)}
.swatch{display:inline-block;width:16px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
.swatch.thin{height:2px;opacity:.75}
svg.chart{display:block;width:100%;height:auto}
svg text{fill:var(--text);font-family:var(--sans);font-size:12px}
svg .tick,svg .axis-name,svg .small{fill:var(--soft);font-size:11.5px}
svg .tiny{fill:var(--soft);font-size:10px}
svg .lane{fill:var(--soft);font-size:11px;font-weight:650;letter-spacing:.08em}
svg .strong{font-weight:650}
svg .field,svg .row-name{font-size:12.5px}
svg .end{text-anchor:end}
svg .mid{text-anchor:middle}
.rule{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.thin{stroke-width:1.25;opacity:.75}
.dot{stroke:none}
.dot.open{fill-opacity:.35;stroke-width:1.5}
.hover{fill:transparent}
.mean{stroke-width:3;stroke-linecap:round}
.whisker{stroke:var(--muted);stroke-width:1.25}
.bar{fill:var(--bar)}
.strip{fill:none;stroke:var(--soft);stroke-width:1;opacity:.4}
.strip.best{stroke:var(--best);stroke-width:2;opacity:1}
.box{fill:var(--card);stroke:var(--muted);stroke-width:1.2}
.box.found{fill:var(--found);stroke:var(--found-edge)}
.box.dashed{stroke-dasharray:4 4}
.edge{fill:none;stroke:var(--soft);stroke-width:1.3}
.edge.residual{stroke:var(--muted);stroke-width:1.1}
.arrow-head{fill:var(--soft)}
.joint{fill:var(--muted)}
.part{stroke:none}
.h_a{fill:var(--history)}
.e_b{fill:var(--fields)}
.p_b{fill:var(--products)}
svg .part-name{font-size:13px;font-weight:650}
.stripe{fill:var(--page)}
.dot-off{fill:var(--rule)}
.dot-on{fill:var(--best)}
.link{stroke:var(--best);stroke-width:2.5}
.head{fill:var(--card);stroke:var(--text);stroke-width:1.4}
@media print{body{background:#fff}section{break-inside:avoid}}
""" + _slot_rules()
)
