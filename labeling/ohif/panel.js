// The panel "Active learning": a custom element, so that it needs nothing of the viewer's React.
import * as clock from './clock.js';
import * as label from './label.js';
import { compare } from './compare.js';
import { submitMeasurements } from './measurements.js';
import { changed, drawing, onChange, state } from './state.js';

const STYLE = `
:host { display: block; color: #e6ecff; font: 13px/1.45 Inter, system-ui, sans-serif; padding: 8px 10px; }
h1 { margin: 0 0 6px; font-size: 13px; font-weight: 600; }
h2 { margin: 14px 0 6px; font-size: 12px; font-weight: 600; color: #5acce6; }
h2:first-of-type { margin-top: 0; }
p { margin: 4px 0; }
.quiet { color: #9fb0d8; font-size: 12px; }
.row { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 4px 0; }
button { background: #0944b3; color: #fff; border: 0; border-radius: 4px; padding: 5px 10px; font: inherit; cursor: pointer; }
button.second { background: #2b2f6b; }
button:hover:enabled { background: #1d5fe0; }
button:disabled { opacity: 0.45; cursor: default; }
button:focus-visible, input:focus-visible, select:focus-visible { outline: 2px solid #5acce6; outline-offset: 1px; }
input[type='text'], select { background: #050615; color: inherit; border: 1px solid #3a3f99; border-radius: 4px; padding: 4px 6px;
  font: inherit; min-width: 0; flex: 1; }
label.field { display: flex; gap: 8px; align-items: center; margin: 4px 0; }
label.field span { flex: 0 0 72px; color: #9fb0d8; }
fieldset { border: 0; margin: 0 0 5px; padding: 0; }
legend { padding: 0; display: flex; align-items: center; gap: 6px; }
fieldset label { margin-right: 10px; font-size: 12px; color: #c6d0f0; white-space: nowrap; }
fieldset label.off { opacity: 0.45; }
input[type='radio'] { accent-color: #5acce6; margin: 0 4px 0 0; vertical-align: -2px; }
button.structure { background: none; color: inherit; padding: 1px 6px 1px 4px; display: flex; align-items: center; gap: 6px;
  border: 1px solid transparent; }
button.structure[aria-pressed='true'] { border-color: #5acce6; background: #0c1a3a; }
.swatch { width: 10px; height: 10px; border-radius: 2px; display: inline-block; }
.problem { border-left: 3px solid #ff6b6b; background: #3a1020; padding: 6px 8px; margin: 8px 0; overflow-wrap: anywhere; }
.problem strong { display: block; font-weight: 600; }
.problem strong::first-letter { text-transform: uppercase; }
.said { border-left: 3px solid #5acce6; background: #0c1a3a; padding: 6px 8px; margin: 8px 0; }
.said.done { border-color: #7bd88f; background: #0c2a20; }
.submitted { color: #7bd88f; }
.new, .changed { color: #ffc66d; }
ol { list-style: none; margin: 0; padding: 0; }
li { display: flex; gap: 8px; align-items: center; justify-content: space-between; padding: 4px 0; border-top: 1px solid #22264f; }
a { color: #5acce6; }
`;

const WORDS = { present: 'present', absent: 'absent', not_annotated: 'not annotated' };
const CHOICES = { '': 'automatic', entropy: 'least sure first', random: 'at random', reference: 'reference patients' };
const STANDING = { new: 'Not submitted yet.', changed: 'Changed since: not submitted yet.', submitted: 'Submitted as it is.' };

// make('button', { text, key, … }, children): an element, kept in focus by its key when the panel is drawn anew.
function make(tag, { text, key, on = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  if (key) made.dataset.key = key;
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  made.append(...children.filter(Boolean));
  return made;
}

// Runs what a button does, one at a time, and shows what went wrong.
export async function run(name, work) {
  if (state.busy) return;
  const stop = new AbortController();
  Object.assign(state, { busy: name, stop, since: performance.now(), problem: null, said: '' });
  changed();
  try {
    await work(stop.signal);
  } catch (error) {
    if (!stop.signal.aborted) {
      console.error('[voxloop]', error);
      state.problem = error;
    }
  }
  state.busy = '';
  changed();
}

const button = (key, text, work, { second = false, disabled = false, title = '' } = {}) =>
  make('button', {
    text,
    key,
    title,
    type: 'button',
    className: second ? 'second' : '',
    disabled: disabled || Boolean(state.busy),
    on: { click: () => run(text, work) },
  });

const option = (value, text, chosen) => make('option', { value, text, selected: value === chosen });

function picker(name, key, options, chosen, work) {
  const choices = options.map(([value, text]) => option(value, text, chosen));
  const select = make('select', { key, disabled: Boolean(state.busy), on: { change: event => work(event.target.value) } }, ...choices);
  return make('label', { className: 'field' }, make('span', { text: name }), select);
}

function who() {
  const on = {
    input: event => {
      state.author = event.target.value;
      localStorage.setItem('voxloop.author', state.author);
    },
  };
  const given = { type: 'text', key: 'author', value: state.author, placeholder: 'your name', disabled: state.authorKnown, maxLength: 64, autocomplete: 'name', on };
  const several = state.projects.length > 1;
  const projects = state.projects.map(({ key }) => [key, key]);
  return [
    make('h1', { text: 'Active learning' }),
    several && picker('Project', 'project', projects, state.project.key, key => run('Project', () => label.choose(key))),
    make('label', { className: 'field' }, make('span', { text: 'Reader' }), make('input', given)),
  ];
}

const misread = () =>
  state.misread.map(({ file, problem, remedy }) =>
    make('p', { className: 'problem', role: 'alert', text: `Project file ${file}: ${problem}. To mend it: ${remedy}, then reload this page.` })
  );

function sample() {
  const { offer, remaining, project } = state;
  const strategies = ['', ...project.strategies].map(name => [name, CHOICES[name] ?? name]);
  const left = remaining && `Not labelled yet: ${remaining.train} for training, ${remaining.reference} for reference.`;
  return [
    make('h2', { text: 'Sample' }),
    picker('Chosen by', 'strategy', strategies, state.strategy, value => Object.assign(state, { strategy: value, skipped: [] })),
    make('div', { className: 'row' }, button('next', 'Next sample', label.next)),
    offer && make('p', { className: 'quiet', text: `${offer.patient || offer.study}: ${offer.reason}.` }),
    left && make('p', { className: 'quiet', text: left }),
  ];
}

function structures() {
  const { project } = state;
  const segmentationId = label.current();
  const none = project.suggests ? '' : 'no endpoint is configured';
  const start = make(
    'div',
    { className: 'row' },
    button('suggest', 'Auto-segment', label.suggest, { disabled: !state.series || !project.suggests, title: none }),
    button('empty', 'Start an empty label', label.startEmpty, { second: true, disabled: !state.series })
  );
  if (!segmentationId) return [make('h2', { text: 'Label' }), start];
  const others = [...state.present].filter(name => !project.segments.some(segment => segment.name === name)).join(', ');
  const strange = others && `Of another name than the project’s: ${others}. Rename or erase what is to be submitted.`;
  const note = strange && make('p', { className: 'changed', text: strange });
  return [make('h2', { text: 'Label' }), start, ...project.segments.map(structure), note];
}

function structure({ name, color }) {
  const chosen = label.stateOf(name);
  const drawn = state.present.has(name);
  const choices = Object.entries(WORDS).map(([value, text]) => {
    const off = drawn !== (value === 'present');
    const radio = make('input', {
      type: 'radio',
      name: `state-${name}`,
      key: `${name}-${value}`,
      value,
      checked: chosen === value,
      disabled: off,
      on: { change: () => label.setState(name, value) },
    });
    const title = !off ? '' : drawn ? 'it is drawn: erase it first' : 'draw it first';
    return make('label', { className: off ? 'off' : '', title }, radio, text);
  });
  const swatch = make('span', { className: 'swatch', style: `background: rgb(${color.join(' ')})` });
  const draws = label.brushed() === name;
  const given = { key: `draw-${name}`, type: 'button', className: 'structure', title: 'draw this one', ariaPressed: String(draws) };
  const named = make('button', { ...given, on: { click: () => label.take(name) } }, swatch, name);
  const note = draws && make('span', { className: 'quiet', text: 'is drawn now' });
  return make('fieldset', {}, make('legend', {}, named, note), make('div', {}, ...choices));
}

function handIn() {
  const standing = label.standing();
  return [
    make(
      'div',
      { className: 'row' },
      button('submit', 'Submit label', label.submit, { disabled: !label.current() }),
      button('measurements', 'Submit measurements', submitMeasurements, { second: true })
    ),
    standing && make('p', { className: standing, text: STANDING[standing] }),
    make('p', { className: 'quiet time' }),
  ];
}

// What a revision says, and how it was made.
function describe({ created_at, states, status, role, suggested_by, seconds, added_path_length }) {
  const named = wanted => Object.keys(states).filter(name => states[name] === wanted).join(', ');
  return [
    new Date(created_at).toLocaleString([], { dateStyle: 'medium', timeStyle: 'medium' }),
    named('present') || 'nothing present',
    named('absent') && `absent: ${named('absent')}`,
    status !== 'submitted' && status,
    suggested_by && `began from ${suggested_by}`,
    role === 'reader' ? `${Math.round(seconds)} s` : role,
    added_path_length !== null && `${added_path_length} voxels of contour added`,
  ].filter(Boolean).join(' · ');
}

function history() {
  const shown = label.current() && drawing(label.current()).parent;
  const rows = state.history.map(revision => {
    const number = label.numberOf(revision);
    const open = button(`load-${revision.label_id}`, 'Load', () => label.load(revision), { second: true });
    open.setAttribute('aria-label', `Load revision ${number}, by ${revision.author}`);
    const here = revision.label_id === shown && 'in the viewer';
    const title = make('div', { text: `${number}. ${revision.author}` }, here && make('span', { className: 'quiet', text: ` – ${here}` }));
    return make('li', {}, make('div', {}, title, make('div', { className: 'quiet', text: describe(revision) })), open);
  });
  return [
    make('h2', { text: 'History' }),
    rows.length ? make('ol', {}, ...rows) : make('p', { className: 'quiet', text: 'This series has no label yet.' }),
    make('div', { className: 'row' }, button('compare', 'Compare with the model', () => compare(state.series), { second: true, disabled: !state.series })),
  ];
}

function model() {
  const { model, model_url } = state.project;
  const link = model_url && make('a', { href: model_url, target: '_blank', rel: 'noopener', text: model });
  return [
    make('h2', { text: 'Model' }),
    make('div', { className: 'row' }, link || make('span', { text: model }),
      button('train', 'Train', () => {}, { second: true, disabled: true, title: 'Training from the viewer comes with a later version' })),
    make('p', { className: 'quiet', text: 'Training from here comes with a later version; until then: voxloop train.' }),
  ];
}

function told() {
  const { problem, said, busy } = state;
  if (busy) {
    const stop = { text: 'Stop waiting', key: 'stop', type: 'button', className: 'second', on: { click: () => state.stop.abort() } };
    const waited = make('p', { role: 'status' }, `${busy} … `, make('span', { className: 'waited' }));
    return make('div', { className: 'said row' }, waited, busy === 'Auto-segment' && make('button', stop));
  }
  if (!problem) return said && make('p', { className: `said ${state.done ? 'done' : ''}`, role: 'status', text: said });
  const remedy = problem.remedy && make('div', { text: `To mend it: ${problem.remedy}.` });
  const about = problem.about && make('div', { className: 'quiet', text: problem.about });
  return make('div', { className: 'problem', role: 'alert' }, make('strong', { text: `${problem.message}.` }), remedy, about);
}

export class ActiveLearning extends HTMLElement {
  connectedCallback() {
    this.root ??= this.attachShadow({ mode: 'open' });
    // What is typed here is no shortcut of the viewer's, which would take Enter away and act upon letters.
    for (const kind of ['keydown', 'keypress', 'keyup']) this.addEventListener(kind, event => event.stopPropagation());
    this.stop = onChange(() => this.draw());
    this.ticking = setInterval(() => this.tick(), 500);
    this.draw();
  }

  disconnectedCallback() {
    this.stop();
    clearInterval(this.ticking);
  }

  draw() {
    const { dataset, selectionStart, selectionEnd } = this.root.activeElement ?? {};
    const focused = dataset?.key ?? this.waiting;
    const parts = state.project ? [who(), misread(), told(), sample(), structures(), handIn(), history(), model()] : [misread(), told()];
    this.root.replaceChildren(make('style', { text: STYLE }), ...parts.flat().filter(Boolean));
    this.focusOn(focused);
    if (selectionStart != null) this.root.activeElement?.setSelectionRange?.(selectionStart, selectionEnd);
    this.tick();
  }

  // A button cannot have the focus while something is under way: it is given it again afterwards, if nobody has it by then.
  focusOn(key) {
    const target = key && this.root.querySelector(`[data-key="${CSS.escape(key)}"]`);
    const free = [null, document.body, this].includes(document.activeElement);
    if (target && free) target.focus();
    this.waiting = target?.disabled && free ? key : undefined;
  }

  tick() {
    const time = this.root.querySelector('.time');
    if (time) time.textContent = `Your time: ${minutes(clock.elapsed())}`;
    const waited = this.root.querySelector('.waited');
    if (waited) waited.textContent = minutes((performance.now() - state.since) / 1000);
  }
}

const minutes = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
