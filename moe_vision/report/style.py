"""The page's style sheet; its variables are the colours that figures borrow."""

CSS = """
:root{--paper:#fcfcfb;--card:#fff;--ink:#1b1e23;--muted:#616975;--grid:#e4e6e9;--accent:#2f6fba;
--warm:#c8590f;--good:#1f7a55;--bad:#b3261e;--heat:47 111 186;--hot:214 96 32;--soft:#f2f3f4}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1b1e23;--ink:#e7e9ec;
--muted:#9ba3ae;--grid:#30353c;--accent:#68a5e8;--warm:#f08a45;--good:#58c298;--bad:#ff7b72;
--heat:66 133 214;--hot:226 110 48;--soft:#22262c}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0 auto;max-width:1180px;padding:40px 28px 60px;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
h1{font-size:38px;line-height:1.15;margin:2px 0 6px;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:23px;margin:56px 0 10px;padding-top:16px;border-top:1px solid var(--grid);
letter-spacing:-.01em}
h3{font-size:16px;margin:30px 0 10px}
h4{font-size:13px;margin:0 0 4px;font-weight:600;overflow-wrap:anywhere}
p{margin:6px 0}a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
code{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
.eyebrow{color:var(--muted);font-size:12px;letter-spacing:.08em;text-transform:uppercase;margin:0}
.facts{color:var(--muted);overflow-wrap:anywhere}
.verdict{display:flex;gap:12px;align-items:center;margin:18px 0 14px;padding:12px 16px;
border-radius:10px;background:var(--soft);font-size:16px;font-weight:550;overflow-wrap:anywhere;
border-left:4px solid var(--v)}
.verdict,.mark{--v:var(--muted)}
.verdict.good,.good .mark{--v:var(--good)}.verdict.warn,.warn .mark{--v:var(--warm)}
.verdict.bad,.bad .mark{--v:var(--bad)}
.mark{flex:none;width:24px;height:24px;border-radius:50%;background:var(--v);color:var(--paper);
display:grid;place-items:center;font-size:14px;font-weight:700}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;font-size:14px;margin-bottom:22px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(196px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px;
display:flex;flex-direction:column}
.card .name{color:var(--muted);font-size:12.5px}
.card .value{font-size:23px;font-weight:620;letter-spacing:-.01em;line-height:1.3}
.card.big{background:var(--soft)}.card.big .value{font-size:30px;line-height:1.2}
.note,.card .note{color:var(--muted);font-size:12.5px;line-height:1.4;margin:4px 0 0}
.meter,.share{display:block;height:5px;border-radius:3px;background:var(--grid);overflow:hidden;
margin:3px 0 4px}
.meter i,.share i{display:block;height:100%;background:var(--accent)}
.share i.routed{background:var(--warm)}
.missing{border:1px dashed var(--muted);border-radius:8px;padding:10px 14px;color:var(--muted);
margin:14px 0;overflow-wrap:anywhere}
ul{margin:6px 0;padding-left:20px}li{margin:3px 0;overflow-wrap:anywhere}
figure{margin:8px 0 0}figcaption{color:var(--muted);font-size:13px;margin-top:12px;max-width:86ch}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--w,330px),100%),1fr));
gap:24px 22px}
.grid.one{grid-template-columns:minmax(0,1fr)}
.grid.two{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.one .panel{overflow-x:auto}.one .chart,.two .chart{max-width:none}.one .chart{min-width:680px}
.one .heat{width:100%}.one .heat thead th:first-child{width:1px}
section>.note{max-width:92ch}
.panel{min-width:0}.chart{display:block;width:100%;max-width:560px;height:auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:13px}
.numbers{margin-top:14px}.numbers th,.numbers td,.record th,.record td{padding:5px 14px 5px 0;
border-bottom:1px solid var(--grid);text-align:left;vertical-align:top}
thead th{color:var(--muted);font-weight:500}
tbody th{font-weight:550;overflow-wrap:anywhere;max-width:340px;text-align:left}
.numbers td{max-width:260px;overflow-wrap:anywhere}.blocks{width:100%}.withbar .share{
display:inline-block;width:55%;min-width:70px;margin:0 10px 2px 0}
.routed-mark{color:var(--warm);font-weight:600}.numbers .alarm{color:var(--warm)}
.classes .withbar{min-width:220px}
.record td{overflow-wrap:anywhere}.record th{font:12.5px ui-monospace,Menlo,Consolas,monospace}
.heat{border-spacing:2px;border-collapse:separate;font-size:11.5px}
.heat thead th{min-width:32px;text-align:center;border-bottom:3px solid transparent;padding:0 0 2px}
.heat tbody th{font-weight:500;padding-right:8px;max-width:320px;white-space:nowrap;overflow:hidden;
text-overflow:ellipsis}
.heat td{--a:0;min-width:32px;height:22px;text-align:center;border-radius:3px;
background:rgb(var(--heat)/var(--a));outline:1px solid var(--grid);outline-offset:-1px}
.heat td.warm{background:rgb(var(--hot)/var(--a))}.heat td.deep{color:#fff}
.heat .up{vertical-align:bottom;padding-top:6px}.heat .up span{writing-mode:vertical-rl;
transform:rotate(180deg);white-space:nowrap}
.heat .corner{font-size:11px;vertical-align:bottom;text-align:left}
.scale{white-space:nowrap}.ramp{display:inline-block;width:90px;height:9px;border-radius:3px;
vertical-align:-1px;background:linear-gradient(90deg,transparent,rgb(var(--heat)));
outline:1px solid var(--grid)}
.beside{display:flex;flex-wrap:wrap;gap:20px 44px;align-items:flex-start}
.beside .chart{width:540px}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:12px}
.samples.one{grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
.samples.plain{grid-template-columns:repeat(auto-fill,minmax(126px,1fr))}
.samples.mistakes{grid-template-columns:repeat(auto-fill,minmax(160px,1fr))}
.mistakes .sample{width:auto;flex-direction:column;gap:6px}
.what code{font-size:11px;line-height:1.35}
.samples.wide{grid-template-columns:repeat(auto-fill,minmax(min(500px,100%),1fr))}
.sample{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px;
display:flex;gap:14px;min-width:0}
.what{flex:none;width:96px}.what p{display:flex;flex-direction:column;font-size:12.5px;
line-height:1.35;overflow-wrap:anywhere}
.what p>*{display:-webkit-box;-webkit-line-clamp:3;-webkit-box-orient:vertical;overflow:hidden}
.what .good{color:var(--good)}.what .bad{color:var(--bad)}
.image{display:block;border-radius:5px;background:var(--soft) var(--png) center/100% 100% no-repeat;
overflow:hidden}
.image.tiny{image-rendering:pixelated}
.image.broken{display:grid;place-items:center;font-size:11px;color:var(--muted);text-align:center}
.image svg{display:block;width:100%;height:100%;transition:opacity .15s}
.image svg path{fill-opacity:.62}.image svg:hover{opacity:.08}
.image svg .cross{fill:none;stroke:#fff;stroke-width:.12;fill-opacity:1}
.routes{display:flex;flex-wrap:wrap;gap:8px 12px;align-content:flex-start;min-width:0;flex:1}
.route{display:flex;flex-wrap:wrap;gap:4px;align-items:center;width:100%}
.route.patches{width:96px;display:block}
.route .name{display:block;width:100%;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;
color:var(--muted);font-size:11.5px;line-height:1.3}
.chip{background:var(--c);color:var(--t);border-radius:9px;padding:1px 8px;font-size:12px;
border:1.5px solid var(--c)}
.chip.dropped{background:none;color:var(--muted);border-style:dashed}
.bar{display:flex;height:14px;width:100%;border-radius:4px;overflow:hidden;background:var(--grid)}
.bar i{display:block;height:100%}
details{margin:8px 0}summary{cursor:pointer;font-weight:550}
footer{margin-top:60px;color:var(--muted);font-size:12.5px}
@media print{body{max-width:none}section{break-inside:auto}.panel,.sample{break-inside:avoid}}
"""
