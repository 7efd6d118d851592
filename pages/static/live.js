// Connects htmx's server-sent events with the rest of a page, says when a part could not be loaded, and takes no part away
// from under a pressed pointer.
"use strict";

(() => {
  const say = (sentence) => {
    const status = document.getElementById("status");
    if (status) status.textContent = sentence;
  };

  // htmx opens the one stream of a page; what else is live hears of it as an event of the document.
  htmx.createEventSource = (address) => {
    const source = new EventSource(address);
    const topics = new Set();
    const hear = (topic) => {
      if (topics.has(topic)) return;
      topics.add(topic);
      source.addEventListener(topic, () => document.dispatchEvent(new CustomEvent("live", { detail: topic })));
    };
    document.querySelectorAll("[data-topic]").forEach((element) => hear(element.dataset.topic));
    source.addEventListener("open", () => say(""));
    source.addEventListener("error", () => say("This page is no longer live: the dashboard does not answer."));
    return source;
  };

  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status !== 401) say("A part of this page could not be loaded; load the page again.");
  });
  document.addEventListener("htmx:sendError", () => say("The dashboard does not answer."));

  // A part that is exchanged between press and release takes the link with it, and no click comes of it: it waits.
  let pressed = false;
  const waiting = new Map();
  const release = () => {
    pressed = false;
    waiting.forEach((html, target) => htmx.swap(target, html, { swapStyle: htmx.config.defaultSwapStyle }));
    waiting.clear();
  };
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (!pressed || !event.detail.shouldSwap) return;
    event.detail.shouldSwap = false;
    waiting.set(event.detail.target, event.detail.serverResponse);
  });
  document.addEventListener("pointerdown", () => (pressed = true));
  ["pointerup", "pointercancel"].forEach((end) => document.addEventListener(end, () => setTimeout(release))); // after the click
  window.addEventListener("blur", release);
})();
