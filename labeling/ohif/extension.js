// The extension: starts the panel with the mode, and follows what the reader opens and draws.
import * as clock from './clock.js';
import * as label from './label.js';
import * as mask from './mask.js';
import { ActiveLearning, run } from './panel.js';
import { compare } from './compare.js';
import { element } from './element.js';
import { active, host, imageOf, service, until } from './host.js';
import { cameFromReport } from './measurements.js';
import { forget, state } from './state.js';

customElements.get('voxloop-panel') ?? customElements.define('voxloop-panel', ActiveLearning);

const subscriptions = [];
const follow = (name, events, listener) => {
  for (const event of events.filter(Boolean)) subscriptions.push(service(name).subscribe(event, listener));
};

// A stroke of the brush is many events: the voxels are looked through once it has ended.
let measuring;
function measure() {
  clearTimeout(measuring);
  measuring = setTimeout(label.measure, 300);
}

async function start() {
  if (!state.project) await label.begin();
  await label.look();
  const series = new URLSearchParams(location.search).get('compare');
  if (!series) return;
  await until(() => imageOf(series) && active().image, `series ${series}`);
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
    follow('segmentationService', [segmentation.SEGMENTATION_DATA_MODIFIED], measure);
    follow('segmentationService', [segmentation.SEGMENTATION_REMOVED], ({ segmentationId }) => {
      forget(segmentationId);
      label.measure();
    });
    follow('segmentationService', [segmentation.SEGMENTATION_REPRESENTATION_MODIFIED, segmentation.SEGMENTATION_MODIFIED], told =>
      setTimeout(() => {
        mask.paint(told.segmentationId);
        measure();
      })
    );
    follow('measurementService', [service('measurementService').EVENTS.RAW_MEASUREMENT_ADDED], cameFromReport);
    Object.assign(state, { series: null, history: [] });
    clock.restart();
    until(() => !state.busy, 'the end of what is under way', Infinity).then(() => run('Open', start));
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
