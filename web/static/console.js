// The screen of a machine, by noVNC: over a websocket of this server, which carries bytes and nothing else.
import RFB from "./vendor/novnc/core/rfb.js";

const place = document.getElementById("screen");
const state = document.getElementById("screen-state");
let screen = null;

function tell(text, kind) {
  state.textContent = text;
  state.className = "badge " + kind;
}

function connect() {
  if (screen) screen.disconnect();
  tell("connecting", "busy");
  const address = new URL(place.dataset.address, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  screen = new RFB(place, address.href, { wsProtocols: ["binary"] });
  const mine = screen;
  screen.scaleViewport = true;
  screen.background = "#000";
  screen.addEventListener("connect", () => { if (screen === mine) { tell("connected", "good"); screen.focus(); } });
  screen.addEventListener("disconnect", (event) => {
    if (screen !== mine) return;
    screen = null;
    tell(event.detail.clean ? "disconnected" : "the connection was lost", event.detail.clean ? "" : "bad");
  });
}

document.querySelector("[data-screen='again']").addEventListener("click", connect);
document.querySelector("[data-screen='ctrl-alt-del']").addEventListener("click", () => { if (screen) screen.sendCtrlAltDel(); });
place.addEventListener("focus", () => { if (screen) screen.focus(); });
connect();
