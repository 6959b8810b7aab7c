// The extension: starts the panel with the mode, and follows what the reader opens and draws.
import * as clock from './clock.js';
import * as label from './label.js';
import * as mask from './mask.js';
import { ActiveLearning, run } from './panel.js';
import { compare } from './compare.js';
import { element } from './element.js';
import { host, imageOf, service, until } from './host.js';
import { drawing, forget, state } from './state.js';

customElements.get('voxloop-panel') ?? customElements.define('voxloop-panel', ActiveLearning);

const subscriptions = [];
const follow = (name, events, listener) => {
  for (const event of events.filter(Boolean)) subscriptions.push(service(name).subscribe(event, listener));
};

const DRAWN = 300;
let measuring;
function edited({ segmentationId }) {
  Object.assign(drawing(segmentationId), { edited: true, labelId: null });
  clearTimeout(measuring);
  measuring = setTimeout(label.measure, DRAWN);
}

async function start() {
  if (!state.project) await label.begin();
  await label.look();
  const series = new URLSearchParams(location.search).get('compare');
  if (!series) return;
  const sets = service('displaySetService');
  await until(() => imageOf(series), 'displaySetService', [sets.EVENTS.DISPLAY_SETS_ADDED], `series ${series}`);
  await until(() => state.series, 'viewportGridService', [service('viewportGridService').EVENTS.VIEWPORTS_READY], 'the image');
  await compare(series);
}

export default {
  id: '@voxloop/extension-label',
  preRegistration(given) {
    Object.assign(host, given);
  },
  onModeEnter() {
    const grid = service('viewportGridService').EVENTS;
    const segmentation = service('segmentationService').EVENTS;
    const look = () => setTimeout(() => label.look().catch(error => console.warn('[voxloop]', error)));
    follow('viewportGridService', [grid.ACTIVE_VIEWPORT_ID_CHANGED, grid.GRID_STATE_CHANGED, grid.VIEWPORTS_READY], look);
    follow('segmentationService', [segmentation.SEGMENTATION_DATA_MODIFIED], edited);
    follow('segmentationService', [segmentation.SEGMENTATION_REMOVED], ({ segmentationId }) => {
      forget(segmentationId);
      label.measure();
    });
    follow('segmentationService', [segmentation.SEGMENTATION_REPRESENTATION_MODIFIED, segmentation.SEGMENTATION_MODIFIED], told =>
      setTimeout(() => {
        mask.paint(told.segmentationId);
        label.measure();
      })
    );
    Object.assign(state, { series: null, history: [] });
    clock.restart();
    run('Open', start);
  },
  onModeExit() {
    subscriptions.splice(0).forEach(subscription => subscription.unsubscribe());
    forget();
  },
  getPanelModule: () => [
    {
      name: 'activeLearning',
      iconName: 'tab-4d',
      iconLabel: 'Active learning',
      label: 'Active learning',
      component: () => element('voxloop-panel'),
    },
  ],
};
