// Voxloop's API. An error is a problem detail (RFC 9457): what is wrong, with what, and what to do.
import { service } from './host.js';

export class Problem extends Error {
  constructor({ title, about = '', remedy = '' }) {
    super(title);
    Object.assign(this, { about, remedy });
  }
}

async function ask(path, options = {}) {
  const authorization = service('userAuthenticationService')?.getAuthorizationHeader?.() ?? {};
  let response;
  try {
    response = await fetch(`/api${path}`, { ...options, headers: { ...options.headers, ...authorization } });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new Problem({ title: 'The server does not answer', about: error.message, remedy: 'is voxloop up running?' });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ title: `The server answered ${response.status}`, remedy: 'see its log' }));
  throw new Problem(told);
}

const json = { 'Content-Type': 'application/json' };
const get = async path => (await ask(path)).json();
const post = async (path, body) => (await ask(path, { method: 'POST', headers: json, body: JSON.stringify(body) })).json();
const at = (key, rest) => `/projects/${encodeURIComponent(key)}${rest}`;

export const projects = () => get('/projects');
export const project = key => get(at(key, ''));
export const next = (key, wanted) => post(at(key, '/next'), wanted);
export const labels = (key, series) => get(at(key, `/labels?series=${encodeURIComponent(series)}`));
export const comparison = (key, series) => get(at(key, `/compare?series=${encodeURIComponent(series)}`));
export const labelMask = id => get(`/labels/${encodeURIComponent(id)}/mask`);
export const predictionMask = uid => get(`/predictions/${encodeURIComponent(uid)}/mask`);
export const voxels = async mask => new Uint8Array(await (await ask(`/masks/${encodeURIComponent(mask)}`)).arrayBuffer());

// Asks for a suggestion and waits for it, however long that takes.
export async function suggestion(key, series, signal) {
  let told = await post(at(key, '/suggestions'), { series });
  while (told.state === 'running') told = await (await ask(`/suggestions/${told.id}?wait=10`, { signal })).json();
  if (told.state === 'failed') throw new Problem(told.problem);
  return told;
}

export async function submit(key, label, voxels) {
  const packed = new Blob([voxels]).stream().pipeThrough(new CompressionStream('gzip'));
  const form = new FormData();
  form.append('label', JSON.stringify(label));
  form.append('mask', await new Response(packed).blob(), 'mask.gz');
  return (await ask(at(key, '/labels'), { method: 'POST', body: form })).json();
}
