// Ties each video's player, its time slider and its lanes together; all of them stand in the page already.
"use strict";

for (const section of document.querySelectorAll("section")) {
  const seconds = Number(section.dataset.seconds);
  const player = section.querySelector("video, audio");
  const slider = section.querySelector("input");
  const shown = section.querySelector(".time");

  const clock = (at) => {
    const s = Math.floor(at);
    const two = (n) => String(n).padStart(2, "0");
    return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
  };

  function show(at) {
    section.style.setProperty("--at", Math.min(at / seconds, 1));
    slider.value = at;
    slider.setAttribute("aria-valuetext", clock(at));
    shown.textContent = clock(at);
  }

  function jump(at) {
    if (player) player.currentTime = at;
    show(at);
  }

  slider.addEventListener("input", () => jump(Number(slider.value)));
  for (const lane of section.querySelectorAll(".lane")) {
    lane.addEventListener("click", (event) => {
      // A key that presses a button clicks at no place: it means the start of the interval.
      if (event.target.tagName === "BUTTON" && event.detail === 0) return jump(Number(event.target.dataset.start));
      const box = lane.getBoundingClientRect();
      jump(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * seconds);
    });
  }
  if (player) {
    const follow = () => {
      show(player.currentTime);
      if (!player.paused) requestAnimationFrame(follow);
    };
    player.addEventListener("play", follow);
    player.addEventListener("timeupdate", () => show(player.currentTime));
    player.addEventListener("error", () => { section.querySelector(".problem").hidden = false; });
    if (player.error) section.querySelector(".problem").hidden = false;
  }
}
