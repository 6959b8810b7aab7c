// The extension as OHIF imports it. One module that cannot be loaded blanks the whole viewer: ours says so in its panel instead.
import { element } from './element.js';

export const EXTENSION = '@voxloop/extension-label';

const broken = error => ({
  id: EXTENSION,
  getPanelModule: () => [
    {
      name: 'activeLearning',
      iconName: 'tab-4d',
      iconLabel: 'Active learning',
      label: 'Active learning',
      component: () =>
        element('div', {
          role: 'alert',
          style: { color: '#ffb3b3', padding: 8 },
          children: `The Active learning panel could not be loaded: ${error.message}. Reload the page; if that does not help, see the browser's console.`,
        }),
    },
  ],
});

export default await import('./extension.js').then(
  module => module.default,
  error => {
    console.error('[voxloop]', error);
    return broken(error);
  }
);
